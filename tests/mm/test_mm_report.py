"""What training and testing of detectors and segmentors leave behind, with one and with two processes."""

import csv
import json

import numpy as np
import pytest
import tiny_coco
import tiny_scenes
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from processes import in_two_processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from internimage.mm.report import ReportHook, _pairs
from internimage.mm.runner import DETECTION, SEGMENTATION, test, train

test.__test__ = False
TASKS = {
    "detection": (DETECTION, tiny_coco, "epoch_6.pth", ["train_cfg.max_epochs=6", "train_cfg.val_interval=3"]),
    "segmentation": (SEGMENTATION, tiny_scenes, "iter_8.pth", ["train_cfg.max_iters=8", "train_cfg.val_interval=4"]),
}
NAMES = ["classes", "confusion_matrix", "curves", "precision_recall", "predictions"]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=list(TASKS))
def run(request, tmp_path_factory):
    """Name and folder of a task: `config.py`, and the run `run`, which also tested its last checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    task, tiny, checkpoint, options = TASKS[request.param]
    path = tiny.make_config(folder, tiny.make_data(folder / "data"))
    path.rename(folder / "config.py")
    options = ["--work-dir", str(folder / "run"), "--cfg-options", "report=True"]
    options += ["optim_wrapper.optimizer.lr=5e-3", "default_hooks.logger.interval=2", *TASKS[request.param][3]]
    if request.param == "segmentation":
        options.append("default_hooks.checkpoint.interval=4")
    train(task, [str(folder / "config.py"), *options])
    test(task, [str(folder / "config.py"), str(folder / "run" / checkpoint), *options])
    return request.param, folder


def test_a_run_leaves_pictures_and_tables_here_and_in_tensorboard(run):
    _, folder = run
    assert sorted(path.stem for path in (folder / "run/report").glob("*.png")) == NAMES
    assert sorted(path.stem for path in (folder / "run/report").glob("*.csv")) == NAMES[:-1]
    assert sorted(path.stem for path in (folder / "run/report_test").glob("*.png")) == [
        n for n in NAMES if n != "curves"
    ]
    tags = set()
    for path in (folder / "run").glob("*/vis_data"):
        events = EventAccumulator(str(path))
        tags |= set(events.Reload().Tags()["images"])
    assert tags == {f"report/{name}" for name in NAMES} | {f"report_test/{n}" for n in NAMES if n != "curves"}


def test_the_table_of_classes_has_the_metrics_that_the_test_printed(run):
    name, folder = run
    (path,) = [path for path in (folder / "run").glob("*/*.json") if "vis_data" not in str(path)]
    metrics = json.loads(path.read_text())
    table = read(folder / "run/report_test/classes.csv")
    column, expected = {
        "detection": ("AP50 (%)", 100 * metrics.get("coco/bbox_mAP_50", 0)),
        "segmentation": ("IoU (%)", metrics.get("mIoU")),
    }[name]
    values = [float(row[column] or "nan") for row in table]
    assert expected > 0 and np.nanmean(values) == pytest.approx(expected, abs=0.06)  # printed with few digits
    if name == "segmentation":  # and the pixels are those of the label maps
        assert sum(int(row["pixels"]) for row in table) == 2 * 45 * 72


def test_the_curves_have_every_logged_step_and_validation(run):
    name, folder = run
    rows = read(folder / "run/report/curves.csv")
    metric = {"detection": "coco/bbox_mAP", "segmentation": "mIoU"}[name]
    measured = [int(row["iteration"]) for row in rows if row[metric]]
    assert measured == {"detection": [6, 12], "segmentation": [4, 8]}[name]
    assert sum(bool(row["loss"]) for row in rows) >= 4


def test_two_processes_count_every_image_once(run, monkeypatch):
    name, folder = run
    task = TASKS[name][0]
    monkeypatch.chdir(folder)
    # A folder stands for its newest checkpoint.
    arguments = [str(folder / "config.py"), "--checkpoint", str(folder / "run"), "--launcher", "pytorch"]
    arguments += ["--work-dir", str(folder / "two"), "--cfg-options", "report=True"]

    def work():
        test(task, arguments)
        return 0

    assert in_two_processes(work) == [0, 0]
    for table in ("classes", "confusion_matrix"):
        one, two = (read(folder / f"{where}/report_test/{table}.csv") for where in ("run", "two"))
        assert sorted(map(str, one)) == sorted(map(str, two))


def test_of_two_boxes_on_an_object_the_one_of_its_class_is_its_match():
    def box(label, x, score=None):
        return {"category_id": label, "bbox": [x, 0, 10, 10], "score": score}

    pairs = _pairs([box(0, 0), box(1, 50)], [box(2, 0), box(0, 2), box(1, 90)], none=3)
    assert sorted((int(a), int(b)) for a, b in pairs) == [(0, 0), (1, 3), (3, 1), (3, 2)]
    assert _pairs([], [], none=3) == []


def test_an_output_that_cannot_be_read_costs_the_report_and_not_the_run(caplog):
    class Runner:
        logger = __import__("logging").getLogger("runner")

    hook = ReportHook("detection")
    for sample in (DetDataSample(), DetDataSample(pred_instances=InstanceData(bboxes=torch.zeros(0, 4)))):
        hook.after_val_iter(Runner, 0, outputs=[sample])
    assert caplog.text.count("no report of the evaluations") == 1 and not all(hook._rows)
