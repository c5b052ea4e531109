"""The model zoo: its rows, its tables, its measured columns, and verified downloads from a local host."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from internimage import download, integrity, zoo
from internimage.errors import CheckpointError, UserError
from internimage.variants import VARIANTS
from internimage.zoo_data import MEASURED, releases

CONTENT = bytes(range(256)) * 20_000  # 5 MB
NAME = "internimage_t_1k_224"


class Host(ThreadingHTTPServer):
    """Answers like the real host: a redirect that carries checksum and size, then the bytes, from any offset."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent = CONTENT  # what arrives
        self.checksum = hashlib.sha256(CONTENT).hexdigest()
        self.cut_at = None  # bytes after which the connection drops
        self.ranges = True
        self.status = 302
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        host, asked = self.server, self.headers.get("Range")
        host.requests.append((self.path, asked))
        if "/resolve/" in self.path:
            self.send_response(host.status)
            if host.status == 302:
                self.send_header("Location", "/cdn/blob")
                self.send_header("X-Linked-Etag", f'"{host.checksum}"')
                self.send_header("X-Linked-Size", str(len(host.sent)))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and host.ranges else 0
        if start >= len(host.sent):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked and host.ranges else 200)
        self.send_header("Content-Length", str(len(host.sent) - start))
        self.end_headers()
        self.wfile.write(host.sent[start : host.cut_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    server = Host()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_released_file_is_downloaded_once_and_verified(host, tmp_path):
    path = zoo.checkpoint_path(NAME)
    assert path == tmp_path / f"{NAME}.pth" and path.read_bytes() == CONTENT
    assert host.requests[0][0] == f"/OpenGVLab/InternImage/resolve/main/{NAME}.pth"
    assert files(tmp_path) == [f"{NAME}.pth", f"{NAME}.pth.sha256"]
    count = len(host.requests)
    assert zoo.checkpoint_path(NAME) == path and len(host.requests) == count


@pytest.mark.parametrize("given", [True, False])
def test_only_a_file_that_its_host_vouched_for_needs_no_check_of_its_own(given, host, tmp_path, monkeypatch):
    host.checksum = host.checksum * given
    path = zoo.checkpoint_path(NAME)
    for _ in range(2):  # as it comes, and in a later process
        assert integrity.is_verified(path) == given
        integrity._verified.clear()
        assert zoo.checkpoint_path(NAME) == path


def test_a_downloaded_file_is_hashed_once_a_process(host, tmp_path, monkeypatch):
    path = zoo.checkpoint_path(NAME)
    monkeypatch.setattr(download, "_sha256", lambda path: pytest.fail("hashed again"))
    assert zoo.checkpoint_path(NAME) == path


def test_a_file_that_arrives_damaged_is_refused_and_not_kept(host, tmp_path):
    host.sent = CONTENT[:-1] + b"\0"
    with pytest.raises(UserError, match="arrived damaged: SHA-256 .* expected") as error:
        zoo.checkpoint_path(NAME)
    assert "\n" not in str(error.value) and files(tmp_path) == []


def test_a_mirror_without_checksums_is_checked_by_size_alone(host, tmp_path):
    host.checksum, host.cut_at = "", 1000
    with pytest.raises(UserError, match="ended after 1000 of"):
        zoo.checkpoint_path(NAME)
    host.cut_at = None
    assert zoo.checkpoint_path(NAME).read_bytes() == CONTENT


def test_a_dropped_connection_is_an_error_and_the_next_call_continues(host, tmp_path):
    host.cut_at = 3_000_000
    with pytest.raises(
        UserError, match=r"ended after 3000000 of 5120000 bytes.*; try again, or download http.* by hand"
    ):
        zoo.checkpoint_path(NAME)
    assert files(tmp_path) == [f"{NAME}.pth.part"]
    host.cut_at = None
    assert zoo.checkpoint_path(NAME).read_bytes() == CONTENT
    assert host.requests[-1] == ("/cdn/blob", "bytes=3000000-")


@pytest.mark.parametrize("left", [b"\0" * 1000, b"\0" * len(CONTENT), CONTENT], ids=["damaged", "whole", "complete"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_whatever_an_interrupted_download_left_the_result_is_right(host, tmp_path, left, ranges):
    host.ranges = ranges
    (tmp_path / f"{NAME}.pth.part").write_bytes(left)
    assert zoo.checkpoint_path(NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [f"{NAME}.pth", f"{NAME}.pth.sha256"]


def test_a_file_missing_on_the_host_is_one_line(host, tmp_path):
    host.status = 404
    with pytest.raises(UserError, match=r"cannot download .*HTTP 404.*by hand and save it as") as error:
        zoo.checkpoint_path(NAME)
    assert str(tmp_path / f"{NAME}.pth") in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path) == []


def test_without_network_the_error_says_what_to_download_and_where_to_put_it(host, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    with pytest.raises(UserError) as error:
        zoo.checkpoint_path(NAME)
    message = str(error.value)
    assert f"download {nowhere}/OpenGVLab/InternImage/resolve/main/{NAME}.pth by hand" in message
    assert f"save it as {tmp_path / f'{NAME}.pth'}" in message and "\n" not in message


def test_a_file_put_there_by_hand_is_used_and_later_damage_is_noticed(host, tmp_path):
    path = tmp_path / f"{NAME}.pth"
    path.write_bytes(b"by hand")
    assert zoo.checkpoint_path(NAME) == path and host.requests == []
    path.write_bytes(b"by hanD")
    with pytest.raises(CheckpointError, match="is damaged.*delete both to download it again"):
        zoo.checkpoint_path(NAME)


def test_processes_that_ask_together_download_once(host, tmp_path):
    threads = [threading.Thread(target=zoo.checkpoint_path, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / f"{NAME}.pth").read_bytes() == CONTENT
    assert [path for path, _ in host.requests].count("/cdn/blob") == 1


def test_without_internimage_home_files_go_to_the_torch_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("INTERNIMAGE_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert zoo.cache_dir() == tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("internimage_t_1k_244", "unknown model.*did you mean internimage_t_1k_224"),
        ("resnet", "unknown model.*run python -m internimage.zoo"),
        ("internimage_h_22kto1k_384", "no weights were released"),
        ("cascade_flash_intern_image_l_fpn_1x_coco", "no weights were released"),
    ],
)
def test_a_name_without_file_is_an_error(name, message):
    with pytest.raises(UserError, match=message):
        zoo.checkpoint_path(name)


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (
            "https://github.com/OpenGVLab/InternImage/releases/download/cls_model/internimage_xl_22k_192to384.pth",
            "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth",
        ),
        ("https://example.org/mine.pth", "https://example.org/mine.pth"),
        (
            "pretrained/mask_rcnn_internimage_t_fpn_1x_coco.pth",
            "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask_rcnn_internimage_t_fpn_1x_coco.pth",
        ),
        (
            "flash_intern_image_l_22kto1k_384",
            "https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_internimage_l_22kto1k_384.pth",
        ),
    ],
)
def test_released_files_come_from_the_zoo_by_their_name_and_other_addresses_as_they_are(
    source, url, monkeypatch, tmp_path
):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(zoo, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(zoo, "fetch", lambda address, path: (address, path))
    assert zoo.local_checkpoint(source) == (url, tmp_path / url.rsplit("/", 1)[1])


def test_a_file_that_is_there_comes_first_and_an_unknown_one_is_an_error(tmp_path):
    path = tmp_path / f"{NAME}.pth"
    path.write_bytes(CONTENT)
    assert zoo.local_checkpoint(path) == path
    with pytest.raises(UserError, match="no checkpoint at .*mine.pth"):
        zoo.local_checkpoint(tmp_path / "mine.pth")


def test_every_row_of_the_original_zoos_is_there_and_names_are_unique():
    assert len(releases()) == 84
    checkpoints = {release.checkpoint for release in releases() if release.checkpoint}
    names = {release.name for release in releases() if release.checkpoint}
    assert len(names) == len(checkpoints) == 79  # test-time augmentation shares one file


def test_every_classifier_of_the_zoo_can_be_built_and_every_variant_is_measured():
    named = {release.name for release in releases() if release.task == "classification"}
    assert set(MEASURED) == set(VARIANTS)
    assert set(VARIANTS) - named == {"internimage_h_22kto1k_384"}  # a config without released weights
    assert named <= set(VARIANTS)


@pytest.mark.parametrize("name", ["internimage_t_1k_224", "internimage_g_22kto1k_512", "flash_intern_image_s_1k_224"])
def test_parameters_and_flops_are_the_published_ones(name, capsys):
    assert zoo.check([name])
    assert "all agree" in capsys.readouterr().out


def test_a_model_that_grew_fails_the_check(monkeypatch, capsys):
    monkeypatch.setattr(zoo, "measure", lambda name: (MEASURED[name][0] + 10**5, MEASURED[name][1] * 2))
    assert not zoo.check([NAME])
    output = capsys.readouterr().out
    assert (
        "published are 29.9 M parameters" in output and "published are 5 GFLOPs" in output and "some differ" in output
    )


def test_flops_follow_the_convention_on_one_layer():
    import torch

    from internimage.flops import count_flops, count_parameters
    from ops_dcnv3 import DCNv3

    layer = DCNv3(8, group=2, backend="torch")
    pixels, depthwise, linear = 6 * 7, 8 * 9, 8 * (2 * 9 * 3) + 2 * 8 * 8
    expected = pixels * (depthwise + linear) + 5 * pixels * 9 * 8
    assert count_flops(layer, torch.zeros(1, 6, 7, 8)) == expected
    assert count_parameters(layer) == sum(p.numel() for p in layer.parameters())
    assert layer.training and not layer._forward_hooks


@pytest.mark.parametrize("task", zoo.TASKS)
def test_tables_have_a_line_per_release_and_link_only_configs_that_exist(task):
    text = zoo.markdown_table(task)
    rows = [line for line in text.splitlines() if line.startswith("| ") and ":---:" not in line]
    of_task = [release for release in releases() if release.task == task]
    assert len(rows) == len(of_task) + len({release.section for release in of_task})  # and one header per section
    tables = re.split(r"\n\n(?=\*\*)", text)
    for table in tables:
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) == 1
    root = Path(__file__).parents[2]
    assert all((root / target).is_file() for target in re.findall(r"\[config\]\((.*?)\)", text))


def test_the_classification_table_shows_measured_beside_published():
    row = next(
        line
        for line in zoo.markdown_table("classification").splitlines()
        if "| InternImage-H | Joint" in line and "1478G" in line
    )
    assert all(f"| {figure} |" in row for figure in ("1.08B", "1478G", "1089.6M", "1493G"))


def test_the_command_lists_models_and_prints_tables(capsys):
    assert zoo.main([]) == 0
    assert "upernet_internimage_t_512_160k_ade20k" in capsys.readouterr().out
    assert zoo.main(["--markdown", "segmentation"]) == 0
    assert "**ADE20K**" in capsys.readouterr().out
