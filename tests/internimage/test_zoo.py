"""The model zoo: its rows, and files that are downloaded once and checked once, from a local host."""

import hashlib
import io
import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from internimage import integrity, zoo
from internimage.errors import CheckpointError, UserError
from internimage.variants import VARIANTS
from internimage.zoo import download, release


def _checkpoint():
    file = io.BytesIO()
    torch.save({"weight": torch.arange(1_000_000)}, file)
    return file.getvalue()


CONTENT = _checkpoint()  # 8 MB
NAME = "internimage_t_1k_224"


class Host(ThreadingHTTPServer):
    """Answers like Hugging Face: a redirect that carries checksum and size, then the bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent = CONTENT  # what arrives
        self.checksum = hashlib.sha256(CONTENT).hexdigest()
        self.cut_at = None  # bytes after which the first connection drops
        self.status = 302
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        host = self.server
        host.requests.append(self.path)
        self.send_response(host.status)
        self.send_header("X-Repo-Commit", "0" * 40)
        if host.status == 302:
            self.send_header("Location", f"http://localhost:{host.server_port}/cdn/blob")
            self.send_header("X-Linked-Etag", f'"{host.checksum}"')
            self.send_header("X-Linked-Size", str(len(CONTENT)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        host = self.server
        host.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(host.sent)))
        self.end_headers()
        end, host.cut_at = host.cut_at, None
        self.wfile.write(host.sent[:end])

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
    integrity._verified.clear()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def downloads(host):
    return [path for path in host.requests if path == "/cdn/blob"]


def test_a_released_file_is_downloaded_once_and_verified(host, tmp_path):
    path = zoo.checkpoint_path(NAME)
    assert path == tmp_path / f"{NAME}.pth" and path.read_bytes() == CONTENT
    assert host.requests[0] == f"/OpenGVLab/InternImage/resolve/main/{NAME}.pth"
    assert files(tmp_path) == [f"{NAME}.pth"]
    count = len(host.requests)
    assert zoo.checkpoint_path(NAME) == path and len(host.requests) == count


@pytest.mark.parametrize("given", [True, False], ids=["SHA-256 from the host", "checksums in the file"])
def test_a_file_is_checked_once_and_not_in_later_processes(given, host, monkeypatch):
    host.checksum = host.checksum if given else "not a hash"
    path = zoo.checkpoint_path(NAME)
    integrity._verified.clear()  # as in a later process
    for module in (download, integrity):
        monkeypatch.setattr(module, "verify_archive", lambda path: pytest.fail("read again"), raising=False)
    assert zoo.checkpoint_path(NAME) == path and integrity.is_verified(path)


def test_a_file_that_arrives_damaged_is_refused_and_not_kept(host, tmp_path):
    host.sent = CONTENT[:-1] + b"\1"
    with pytest.raises(UserError, match="download is damaged: SHA-256 .* expected .* by hand and save it as") as error:
        zoo.checkpoint_path(NAME)
    assert "\n" not in str(error.value) and files(tmp_path) == []


def test_after_a_dropped_connection_the_download_goes_on(host):
    host.cut_at = 3_000_000
    assert zoo.checkpoint_path(NAME).read_bytes() == CONTENT and len(downloads(host)) == 2


def test_a_file_missing_on_the_host_is_one_line(host, tmp_path):
    host.status = 404
    with pytest.raises(UserError, match=r"cannot download .*404.*by hand and save it as") as error:
        zoo.checkpoint_path(NAME)
    assert str(tmp_path / f"{NAME}.pth") in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path) == []


def test_without_network_the_error_says_what_to_download_and_where_to_put_it(host, tmp_path, monkeypatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    with pytest.raises(UserError, match="Connection refused") as error:
        zoo.checkpoint_path(NAME)
    message = str(error.value)
    assert f"download {nowhere}/OpenGVLab/InternImage/resolve/main/{NAME}.pth by hand" in message
    assert f"save it as {tmp_path / f'{NAME}.pth'}" in message and "\n" not in message
    assert error.value.__suppress_context__  # one traceback, not those of urllib or httpx before it


def test_a_file_put_there_by_hand_is_used_and_later_damage_is_noticed(host, tmp_path):
    path = tmp_path / f"{NAME}.pth"
    path.write_bytes(CONTENT)
    assert zoo.checkpoint_path(NAME) == path and host.requests == []
    path.write_bytes(CONTENT[:4_000_000] + b"\1" + CONTENT[4_000_001:])
    with pytest.raises(CheckpointError, match=rf"{NAME}.pth: it is damaged.*delete it to download it again"):
        zoo.checkpoint_path(NAME)


@pytest.mark.parametrize("record", [b"", b"\xff\xfe"], ids=["empty", "not text"])
def test_a_damaged_record_of_the_check_only_repeats_the_check(record, host, tmp_path):
    path = zoo.checkpoint_path(NAME)
    (tmp_path / f".{NAME}.pth.checked").write_bytes(record)
    integrity._verified.clear()
    assert zoo.checkpoint_path(NAME) == path and integrity.is_verified(path)


def test_processes_that_ask_together_download_once(host, tmp_path):
    threads = [threading.Thread(target=zoo.checkpoint_path, args=(NAME,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / f"{NAME}.pth").read_bytes() == CONTENT and len(downloads(host)) == 1


def test_files_of_one_name_from_different_urls_are_kept_apart(host, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # not the hub: a plain web server
    first = zoo.local_checkpoint(f"{host.url}/a/mine.pth?download=1")
    host.sent = CONTENT + b"of another host"
    second = zoo.local_checkpoint(f"{host.url}/b/mine.pth")
    assert first.name == second.name == "mine.pth" and first.read_bytes() == CONTENT
    assert second.read_bytes() == host.sent and zoo.local_checkpoint(f"{host.url}/b/mine.pth") == second


def test_a_url_of_hugging_face_goes_to_the_mirror(host, tmp_path):
    path = zoo.local_checkpoint("https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth")
    assert host.requests[0] == "/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth"
    assert path.read_bytes() == CONTENT and path.parent.parent == tmp_path  # not a released name


def test_a_plain_web_server_that_stops_early_leaves_no_file(host, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    host.cut_at = 1000
    with pytest.raises(UserError, match=rf"the connection ended after 1000 of {len(CONTENT)} bytes.*by hand"):
        zoo.local_checkpoint(f"{host.url}/a/mine.pth")
    assert zoo.local_checkpoint(f"{host.url}/a/mine.pth").read_bytes() == CONTENT


def test_without_internimage_home_files_go_to_the_torch_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("INTERNIMAGE_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert zoo.cache_dir() == tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("internimage_t_1k_244", "did you mean internimage_t_1k_224"),
        ("resnet", "run python -m internimage.zoo"),
        ("internimage_h_22kto1k_384", "no weights were released with the name"),
        ("cascade_flash_intern_image_l_fpn_1x_coco", "no weights were released with the name"),
    ],
)
def test_a_name_without_file_is_an_error(name, message):
    with pytest.raises(UserError, match=message):
        zoo.checkpoint_path(name)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        (
            "https://github.com/OpenGVLab/InternImage/releases/download/cls_model/internimage_xl_22k_192to384.pth",
            "OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth",
        ),
        (
            "pretrained/mask_rcnn_internimage_t_fpn_1x_coco.pth",
            "OpenGVLab/InternImage/resolve/main/mask_rcnn_internimage_t_fpn_1x_coco.pth",
        ),
        ("flash_intern_image_l_22kto1k_384", "OpenGVLab/DCNv4/resolve/main/flash_internimage_l_22kto1k_384.pth"),
    ],
)
def test_released_files_come_from_the_zoo_by_their_name(source, path, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path))
    monkeypatch.setattr(release, "fetch", lambda url, folder: (url, folder))
    assert zoo.local_checkpoint(source) == (f"https://huggingface.co/{path}", tmp_path)


def test_a_file_that_is_there_comes_first_and_an_unknown_one_is_an_error(tmp_path):
    path = tmp_path / f"{NAME}.pth"
    path.write_bytes(CONTENT)
    assert zoo.local_checkpoint(path) == path
    with pytest.raises(UserError, match="no checkpoint at .*mine.pth"):
        zoo.local_checkpoint(tmp_path / "mine.pth")


def test_every_row_of_the_original_zoos_is_there_and_file_names_are_unique():
    assert len(zoo.releases()) == 84
    checkpoints = {row.checkpoint for row in zoo.releases() if row.checkpoint}
    names = {row.name for row in zoo.releases() if row.checkpoint}
    assert len(names) == len(checkpoints) == 79  # test-time augmentation shares one file
    assert len({checkpoint.rsplit("/", 1)[1] for checkpoint in checkpoints}) == 79  # so one folder can hold all


def test_every_classifier_of_the_zoo_can_be_built():
    named = {row.name for row in zoo.releases() if row.task == "classification"}
    assert set(VARIANTS) - named == {"internimage_h_22kto1k_384"}  # a config without released weights
    assert named <= set(VARIANTS)


def test_the_module_lists_every_release_by_task(capsys):
    runpy.run_module("internimage.zoo", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "classification:" and len(lines) == 84 + 3
    assert any(line.split()[0] == "upernet_internimage_t_512_160k_ade20k" and "47.9" in line for line in lines)
