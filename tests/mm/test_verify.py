"""`internimage verify` on a model zoo of tiny models, which a local host releases."""

import contextlib
import hashlib
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_coco
import tiny_scenes
import torch
from mmengine.registry import MODELS, init_default_scope

from internimage import verify
from internimage.__main__ import main
from internimage.mm import runner
from internimage.mm.checks import read_config
from internimage.zoo import Release, release

sys.path.append(str(Path(__file__).parents[1] / "classification"))
from tiny_training import make_images, write_config

from classification.config import get_config, parse_args
from classification.models import build_model
from classification.train import main as classification_script

RELEASES = release.releases()


class Handler(BaseHTTPRequestHandler):
    """Answers like Hugging Face for the files of the server's folder."""

    def do_HEAD(self):
        path = self.server.folder / Path(self.path).name
        content = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if content else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def tmp_path(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def host(tmp_path, monkeypatch):
    (tmp_path / "host").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder = tmp_path / "host"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path / "home"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield server.folder
    server.shutdown()
    thread.join()
    server.server_close()


def row(task, config, facts, weights):
    return Release(task, "tiny", facts, str(config), f"tiny/zoo/resolve/main/{weights}.pth" if weights else "", "", "")


def detector(folder, tiny, scope, weights):
    """A configuration on `data/NAME`, and its random weights."""
    tiny.make_data(folder / "data" / scope)
    config = tiny.make_config(folder, Path("data", scope))
    if scope == "mmdet":
        config.write_text(config.read_text() + 'test_evaluator = dict(val_evaluator, metric=["bbox", "segm"])\n')
    init_default_scope(scope)
    torch.manual_seed(0)
    torch.save({"state_dict": MODELS.build(read_config(str(config)).model).state_dict()}, weights)
    return config


@pytest.fixture(scope="module")
def zoo(host, tmp_path, monkeypatch):
    """The rows, with the figures that the scripts measure: top-1 accuracy, and mIoU of one and of several scales."""
    monkeypatch.chdir(tmp_path)
    images = make_images(tmp_path / "data" / "folder")
    config = write_config(tmp_path / "classifier.yaml", images, {"TRAIN": {"EMA": {"ENABLE": False}}})
    torch.manual_seed(0)
    model = build_model(get_config(parse_args(["--cfg", str(config)])), 4)
    torch.save({"model": model.state_dict()}, host / "classifier.pth")
    with contextlib.redirect_stdout(io.StringIO()) as log:
        classification_script(["--cfg", str(config), "--eval", "--resume", str(host / "classifier.pth")])
    top1 = log.getvalue().partition("top-1 ")[2].partition("%")[0]
    config.write_text(config.read_text().replace(str(images), "elsewhere"))
    boxes = detector(tmp_path, tiny_coco, "mmdet", host / "boxes.pth")
    scenes = detector(tmp_path, tiny_scenes, "mmseg", host / "scenes.pth")
    argv = [str(scenes), str(host / "scenes.pth")]
    single, several = (runner.evaluate(runner.SEGMENTATION, argv + more)["mIoU"] for more in ([], ["--tta"]))
    assert float(top1) > 0 and single > 0
    rows = (
        row("classification", config, {"acc@1": top1}, "classifier"),
        row("classification", tmp_path / "other.yaml", {"acc@1": "90.0"}, "absent"),
        row("classification", "", {"resolution": "384x384"}, "backbone"),
        row("detection", boxes, {"box mAP": "50.0", "mask mAP": "40.0"}, "boxes"),
        row("detection", tmp_path / "larger.py", {"box mAP": "60.0"}, ""),
        row("segmentation", scenes, {"mIoU (ss/ms)": f"{single:.2f} / {several + 3:.2f}"}, "scenes"),
    )
    for module in (verify, release):
        monkeypatch.setattr(module, "releases", lambda: rows)
    return rows


def test_measured_figures_stand_beside_the_published_ones_and_a_failed_row_ends_nothing(zoo, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--data-path", str(tmp_path / "data"), "--output", "out"])
    assert stop.value.code == 1
    found = json.loads((tmp_path / "out/verify.json").read_text())
    states = {(one["name"], one["metric"]): one["status"] for one in found}
    failed = states.pop(("other", "acc@1"))
    assert failed.startswith("failed: cannot download absent.pth") and "404" in failed
    assert states == {
        ("classifier", "acc@1"): "ok",
        ("backbone", ""): "skipped: no published figure",
        (Path(zoo[3].config).stem, "box mAP"): "off",
        (Path(zoo[3].config).stem, "mask mAP"): "off",
        ("larger", "box mAP"): "skipped: no weights released",
        (Path(zoo[5].config).stem, "mIoU (ss)"): "ok",
        (Path(zoo[5].config).stem, "mIoU (ms)"): "off",
    }
    by_metric = {one["metric"]: one for one in found if one["measured"] is not None}
    assert by_metric["acc@1"]["measured"] == pytest.approx(float(zoo[0].facts["acc@1"]), abs=1e-3)
    assert by_metric["mIoU (ms)"]["difference"] == pytest.approx(-3, abs=0.02)
    assert by_metric["mask mAP"]["difference"] == by_metric["mask mAP"]["measured"] - 40
    printed = capsys.readouterr()
    assert "[5/5] " in printed.out and " left" in printed.out and "8 figures: 2 ok, 4 off or failed; out" in printed.out
    assert printed.err.count("error: other: cannot download absent.pth") == 1


def test_a_chosen_row_within_the_tolerance_ends_with_0_and_one_without_data_with_1(zoo, tmp_path, capsys):
    zoo[0].facts["acc@1"] = str(float(zoo[0].facts["acc@1"]) + 0.4)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "classifier", "--tolerance", "0.5"])
    assert stop.value.code == 0 and "1 figures: 1 ok, 0 off" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["verify", "boxes", "--data-path", "nowhere"])
    assert stop.value.code == 1 and "failed: no data at nowhere/mmdet/instances.json" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["verify", "clasifier"])
    assert stop.value.code == 2 and "no 'clasifier'" in capsys.readouterr().err


def test_every_row_of_the_model_zoo_with_weights_and_a_figure_is_evaluated():
    runs = [run for one in RELEASES for run in verify._runs(one)]
    skipped = {figure.status for run in runs for figure in run.figures.values()} - {""}
    assert skipped == {
        "skipped: no published figure",
        "skipped: no weights released",
        "skipped: measured by the server of the data set only",
    }
    for run in runs:
        facts, figures = run.release.facts, run.figures
        published = any(char.isdigit() for key in verify._METRICS for char in facts.get(key, ""))
        assert published == ("" not in figures or "server" in figures[""].status)
    checked = {(run.config.rpartition("/")[2], run.augmented): run for run in runs}
    several = checked["dino_4scale_cbinternimage_h_objects365_lvis_val_ms.py", True]
    assert several.figures["lvis/bbox_AP"].published == 63.2
    assert checked["mask_rcnn_internimage_t_fpn_1x_coco.py", False].figures["coco/segm_mAP"].published == 42.5
    assert checked["upernet_internimage_t_512_160k_ade20k.py", True].figures["mIoU"].published == 48.1
