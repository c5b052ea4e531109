"""The table of faults: what goes wrong, how the tests make it go wrong, and what must hold nevertheless.

To add a fault, append a row to one of the lists below, with a `check` that injects it in an empty folder and asserts,
or to `elsewhere.md`, with the name of a test that does. `python tests/faults --markdown` prints the table.
"""

import functools
import io
import resource
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from forged import FORGED
from in_children import results_of
from mutations import TARGETS, mutate_often
from safetensors.torch import save_file
from sanitized import run_operator_cases

from classification.config import get_config, parse_args
from classification.data.samples import read_list
from classification.inference import read_image
from classification.trainer.distributed import World
from classification.trainer.tracking import Tracker, prepare_folder
from internimage import integrity
from internimage.checkpoint import load_file, save_atomic
from internimage.errors import CheckpointError, UserError

__all__ = ["FAULTS", "Fault", "markdown"]


@dataclass(frozen=True)
class Fault:
    """A row of the table. Either `check` is there or `test`, as `FILE::FUNCTION` below `tests/`."""

    name: str
    injection: str
    holds: str
    check: Callable[[Path], None] | None = None
    test: str | None = None


# Checkpoints that ask for too much

READERS = ("load_file", "torch.load", "mmengine", "timm")


@functools.cache
def _forged() -> dict[str, tuple[int, str]]:
    """What became of each forged file in each reader; they are read in children, which may crash."""
    with tempfile.TemporaryDirectory() as folder:
        return results_of("read_forged.py", folder)


def _is_refused_by_every_reader(name: str, _: Path) -> None:
    for reader in READERS:
        code, line = _forged()[f"{name}, {reader}"]
        # What torch itself refuses is an error of torch or timm, from their own readers.
        by_torch = "Weights only load failed" in line or "blocked loading" in line
        assert code == 2 or (code == 1 and by_torch and reader in ("torch.load", "timm")), (reader, code, line)
        assert "not loaded for safety" in line or by_torch, line
    assert f"{name}.pth" in _forged()[f"{name}, load_file"][1]


FORGED_CHECKPOINTS = [
    Fault(
        f"forged checkpoint: {name}",
        "a pickle that asks an allowed class for it, read by load_file, torch.load, mmengine and timm",
        "refused by every reader, no crash, no code runs",
        partial(_is_refused_by_every_reader, name),
    )
    for name in FORGED
]

# Checkpoints that were damaged


def _good(folder: Path) -> bytes:
    generator = torch.Generator().manual_seed(0)
    save_atomic({"model": {"weight": torch.rand(3000, generator=generator)}, "epoch": 3}, folder / "good.pth")
    return (folder / "good.pth").read_bytes()


def _is_refused(content: bytes | None, path: Path, message: str | None = None) -> None:
    """Reading `path`, with this content, raises a `CheckpointError` of one line that names the file."""
    if content is not None:
        path.write_bytes(content)
    integrity._verified.clear()  # the clock may be too coarse to tell one write from the next
    with pytest.raises(CheckpointError, match=message) as error:
        load_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def _changed_checkpoint(change: Callable[[bytes], bytes], folder: Path) -> None:
    _is_refused(change(_good(folder)), folder / "hurt.pth")


def _flip(place: float, raw: bytes) -> bytes:
    changed = bytearray(raw)
    changed[int(place * len(raw))] ^= 1
    return bytes(changed)


def _is_a_folder(folder: Path) -> None:
    (folder / "hurt.pth").mkdir()
    _is_refused(None, folder / "hurt.pth")


def _is_missing(folder: Path) -> None:
    _is_refused(None, folder / "none.pth")


def _compressed(folder: Path) -> None:
    _good(folder)
    with (
        zipfile.ZipFile(folder / "good.pth") as old,
        zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    _is_refused(None, folder / "x.pth", "compressed")


def _changed_safetensors(change: Callable[[bytes], bytes], folder: Path) -> None:
    save_file({"weight": torch.ones(8)}, folder / "x.safetensors")
    _is_refused(change((folder / "x.safetensors").read_bytes()), folder / "hurt.safetensors")


def _damage(name: str, injection: str, change: Callable[[bytes], bytes]) -> Fault:
    return Fault(f"damaged checkpoint: {name}", injection, REFUSED, partial(_changed_checkpoint, change))


REFUSED = "an error of one line that names the file"
DAMAGED_CHECKPOINTS = [
    _damage("a flipped bit in the weights", "one bit in the middle of the file", partial(_flip, 0.5)),
    _damage(
        "a flipped bit in the directory", "one bit 60 bytes before the end", lambda raw: _flip(1 - 60 / len(raw), raw)
    ),
    _damage("a zeroed page", "4,096 bytes set to zero", lambda raw: raw[:4096] + bytes(4096) + raw[8192:]),
    _damage("a lost half", "the file cut in the middle", lambda raw: raw[: len(raw) // 2]),
    _damage("a lost last byte", "the file one byte shorter", lambda raw: raw[:-1]),
    _damage("an empty file", "no bytes", lambda raw: b""),
    _damage("an error page", "HTML under the name of a checkpoint", lambda raw: b"<!DOCTYPE html><html>404</html>"),
    _damage(
        "a pointer to a large file", "the text that Git LFS leaves", lambda raw: b"version https://git-lfs\nsize 9\n"
    ),
    _damage("a picture", "a PNG file under the name of a checkpoint", lambda raw: b"\x89PNG\r\n\x1a\n" + raw[:100]),
    Fault("checkpoint: a folder of its name", "a folder named hurt.pth", REFUSED, _is_a_folder),
    Fault("checkpoint: no such file", "a path that does not exist", REFUSED, _is_missing),
    Fault("checkpoint: a compressed archive", "its parts deflated", f"{REFUSED} and says so", _compressed),
    *(
        Fault(f"damaged safetensors: {name}", injection, REFUSED, partial(_changed_safetensors, change))
        for name, injection, change in (
            ("a lost last byte", "the file one byte shorter", lambda raw: raw[:-1]),
            ("a byte too many", "one byte appended", lambda raw: raw + b"x"),
            ("a wrong length of the header", "its highest bytes set", lambda raw: raw[:4] + b"\xff" + raw[5:]),
            ("a broken header", "a zero byte in its JSON", lambda raw: raw[:20] + b"\0" + raw[21:]),
        )
    ),
]

# Configurations and lists


def _configuration(content: bytes, message: str, folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        get_config(parse_args(["--cfg", str(path)]))
    assert "\n" not in str(error.value)


def _list_of_images(content: bytes, folder: Path) -> None:
    (folder / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.txt"):
        read_list(folder / "train.txt", [folder])


CONFIGURATIONS = [
    *(
        Fault(
            f"configuration: {name}", injection, "an error of one line that says which", partial(_configuration, *given)
        )
        for name, injection, *given in (
            ("not text", "bytes that are no UTF-8", b"\xff\xfe\x00", "not a text file"),
            ("not YAML", "a bracket that is never closed", b"DATA: [", "not valid YAML"),
            ("a tab for spaces", "a line that starts with a tab", b"DATA:\n\tIMG_SIZE: 3", "not valid YAML"),
            ("a list for sections", "a YAML list", b"- DATA", "is a list, expected"),
            (
                "an unknown key",
                "a key with a letter missing",
                b"TRAIN: {EPOCS: 3}",
                "nearest known key is TRAIN.EPOCHS",
            ),
            ("a value for a section", "DATA is a number", b"DATA: 3", "expected a section"),
            ("a value of the wrong type", "a word for a number", b"TRAIN: {EPOCHS: many}", "expected int"),
            ("an unknown choice", "a misspelt name", b"MODEL: {TYPE: intern_imag}", "did you mean intern_image"),
            ("a number below its least", "no epochs", b"TRAIN: {EPOCHS: -1}", "EPOCHS"),
            ("itself as its base", "BASE names the file", b"BASE: ['wrong.yaml']", "BASE refers to this file itself"),
            ("a base that is missing", "BASE names no file", b"BASE: ['none.yaml']", "cannot read"),
            (
                "Python in YAML",
                "a tag that calls a function",
                b"TAG: !!python/object/apply:os.getcwd []",
                "not valid YAML",
            ),
        )
    ),
    *(
        Fault(f"list of images: {name}", injection, "an error that names the file", partial(_list_of_images, content))
        for name, injection, content in (
            ("empty", "no bytes", b""),
            ("no labels", "names alone", b"a.png\nb.png\n"),
            ("a negative label", "label -1", b"a.png -1\n"),
            ("broken JSON", "a bracket that is never closed", b'[["a.png", 1'),
            ("not text", "bytes that are no UTF-8", b"\xff\xfe\x00"),
        )
    ),
]

# Images


def _image(content: bytes, folder: Path) -> None:
    (folder / "hurt.png").write_bytes(content)
    with pytest.raises(UserError, match=r"hurt\.png"):
        read_image(folder / "hurt.png")


IMAGES = [
    Fault("image: empty", "no bytes", "an error that names the file", partial(_image, b"")),
    Fault(
        "image: text", "words under the name of an image", "an error that names the file", partial(_image, b"not me")
    ),
]

# Runs on full disks and in read-only folders; what kills them is in elsewhere.md


@contextmanager
def _limited_files(size: int) -> Iterator[None]:
    """Let no file become larger than this, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _full_disk_of_tensorboard(folder: Path) -> None:
    tracker = Tracker(folder, World())
    tracker.begin(0, 0)
    said = io.StringIO()
    with _limited_files(20_000), redirect_stderr(said), pytest.MonkeyPatch.context() as patches:
        patches.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's thread ends with the same error
        for step in range(1000):
            tracker.scalars(step, {"train/loss": 1.0})
        tracker.epoch({"epoch": 0})
        tracker.close()
    assert said.getvalue().count("training goes on") == 1
    assert (folder / "history.jsonl").read_text() == '{"epoch": 0}\n'


def _full_disk_of_history(folder: Path) -> None:
    (folder / "history.jsonl").write_text('{"epoch": 0}\n' * 2000)
    said = io.StringIO()
    with _limited_files(20_000), redirect_stderr(said):
        tracker = Tracker(folder, World())
        tracker.begin(1, 0)
        tracker.epoch({"epoch": 1})
        tracker.close()
    assert said.getvalue().count("training goes on") == 1


def _folder_that_is_read_only(_: Path) -> None:
    with pytest.raises(UserError, match="cannot write to the output folder /proc/run"):
        prepare_folder(Path("/proc/run"))


RUNS = [
    *(
        Fault(f"full disk: {name}", "a limit on the size of files", "one message, training goes on", check)
        for name, check in (("TensorBoard", _full_disk_of_tensorboard), ("history", _full_disk_of_history))
    ),
    Fault("read-only folder of a run", "a folder below /proc", "an error that names it", _folder_that_is_read_only),
]

# Everything at random; the long form does more of each


def _operator_cases(_: Path) -> None:
    finished = run_operator_cases(1000, seed=0, vectors=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout == "1000 calls\n"


RANDOM = [
    *(
        Fault(
            f"random changes: {target}",
            "bytes, words and pieces changed by hypothesis (100 files; long form 5,000)",
            "read, or an error of one line",
            partial(mutate_often, target, 100),
        )
        for target in TARGETS
    ),
    Fault(
        "operator: random calls",
        "shapes, strides and values at random, with NaN, infinities and 1e300 (1,000 calls; long form 50,000)",
        "no report of AddressSanitizer or UBSan, every result written",
        _operator_cases,
    ),
]

# What tests elsewhere inject


def _elsewhere() -> list[Fault]:
    """The rows of `elsewhere.md`."""
    lines = (Path(__file__).parent / "elsewhere.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [Fault(*row[:3], test=row[3]) for row in rows if row[0] != "fault"]


FAULTS = [*FORGED_CHECKPOINTS, *DAMAGED_CHECKPOINTS, *CONFIGURATIONS, *IMAGES, *RUNS, *RANDOM, *_elsewhere()]


def markdown(results: dict[str, str] | None = None) -> str:
    """The table in Markdown, with what became of each fault where that is known."""
    last = ["result"] if results else []
    lines = [f"| {' | '.join(['fault', 'injection', 'what must hold', *last])} |", f"|{'---|' * (3 + len(last))}"]
    for fault in FAULTS:
        cells = [
            fault.name,
            fault.injection,
            fault.holds,
            *([results.get(fault.name, "in the suite")] if results else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
