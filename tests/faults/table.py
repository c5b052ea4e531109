"""The table of faults: what goes wrong, how the tests make it go wrong, and what must hold nevertheless.

To add a fault, append a row to one of the lists below: a `check` that injects it in an empty folder and asserts, or the
name of a `test` elsewhere in the suite that does. `python tests/faults --markdown` prints the table.
"""

import functools
import tempfile
import zipfile
from collections.abc import Callable
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
    Fault(
        "damaged checkpoint: 200 flipped bits",
        "one bit at each of 200 places, half of them outside the data",
        "refused, or all values as they were",
        test="faults/test_damaged_checkpoints.py::test_a_flipped_bit_is_found_or_lies_where_there_is_no_data",
    ),
    Fault(
        "damaged checkpoint: before zip archives",
        "the format of old torch, cut",
        "read if whole, refused if cut",
        test="faults/test_damaged_checkpoints.py::test_a_file_from_before_zip_archives_is_read_and_its_truncation_found",
    ),
    Fault(
        "forged checkpoint at every entry point",
        "given to each script of the three tasks",
        "exit code 2 and one line",
        test="faults/test_forged_checkpoints.py::test_every_entry_point_refuses_forged_checkpoints",
    ),
    Fault(
        "configuration inside a checkpoint",
        "meta.config holds Python that writes a file",
        "it is not run",
        test="faults/test_killed_saves.py::test_a_configuration_inside_a_checkpoint_is_not_run",
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
            ("itself as its base", "BASE names the file", b"BASE: ['wrong.yaml']", "BASE names this file itself"),
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


def _images_test(name: str, injection: str, holds: str, test: str) -> Fault:
    return Fault(f"image: {name}", injection, holds, test=f"faults/test_unsuitable_images.py::{test}")


IMAGES = [
    Fault("image: empty", "no bytes", "an error that names the file", partial(_image, b"")),
    Fault(
        "image: text", "words under the name of an image", "an error that names the file", partial(_image, b"not me")
    ),
    _images_test(
        "turned",
        "all eight orientations of EXIF in four formats",
        "read upright by every reader",
        "test_a_turned_photograph_is_read_upright",
    ),
    _images_test(
        "damaged EXIF", "three kinds of nonsense", "the image is read", "test_damaged_exif_data_lose_no_image"
    ),
    _images_test(
        "EXIF that cannot be written",
        "a width of type text",
        "turned",
        "test_an_exif_entry_that_cannot_be_written_again_does_not_hinder_turning",
    ),
    _images_test("16 bits", "PNG, TIFF and PGM", "divided by 257", "test_16_bit_grey_is_divided_by_257"),
    _images_test(
        "32 bits", "int32 and float TIFF", "refused by name and mode", "test_32_bit_pixels_are_refused_by_name_and_mode"
    ),
    _images_test(
        "a line",
        "12000 x 1 in 115 bytes",
        "refused before a pixel is read",
        "test_an_extreme_aspect_ratio_is_refused_before_any_pixel_is_read",
    ),
    _images_test(
        "a decompression bomb",
        "50000 x 50000 in 100 bytes",
        "refused by name",
        "test_a_decompression_bomb_is_refused_by_name",
    ),
    _images_test(
        "palettes, CMYK and others",
        "seven modes",
        "the same pixels in every reader",
        "test_all_readers_give_the_same_pixels_of_every_other_kind",
    ),
]

# Runs that are killed, full disks, what is left behind


def _saves_test(name: str, injection: str, holds: str, test: str) -> Fault:
    return Fault(name, injection, holds, test=f"faults/test_killed_saves.py::{test}")


RUNS = [
    _saves_test(
        "kill while a checkpoint is saved",
        "SIGKILL before each file operation",
        "started again, the same weights",
        "test_killed_in_any_moment_of_a_save_and_started_again_a_run_ends_the_same",
    ),
    _saves_test(
        "too few checkpoints kept",
        "max_keep_ckpts=1",
        "two are kept and the best",
        "test_at_least_two_checkpoints_are_kept_and_the_best",
    ),
    _saves_test(
        "deleted too early",
        "reads before each removal",
        "what replaces a file is there",
        "test_nothing_is_deleted_before_what_replaces_it_is_there",
    ),
    _saves_test(
        "files of a killed run", "temporary files in its folder", "removed", "test_what_a_killed_run_left_is_removed"
    ),
    _saves_test(
        "full disk",
        "ENOSPC after 100 bytes",
        "one line; the old files stay",
        "test_a_full_disk_is_one_line_and_leaves_what_was_there",
    ),
    _saves_test(
        "unreadable latest checkpoint",
        "a flipped bit",
        "passed over with a notice",
        "test_an_unreadable_checkpoint_is_passed_over_with_a_notice",
    ),
    _saves_test(
        "no readable checkpoint",
        "all cut",
        "the run does not start anew",
        "test_if_none_can_be_read_the_run_does_not_start_anew",
    ),
    _saves_test(
        "note of a file that is gone",
        "the newest deleted",
        "the one before is found",
        "test_a_note_of_a_file_that_is_gone_does_not_hide_the_others",
    ),
    _saves_test(
        "weights without a run",
        "parts of the checkpoint deleted",
        "says what is missing",
        "test_resuming_from_weights_alone_says_what_is_missing",
    ),
    Fault(
        "kill in mid-epoch (classification)",
        "SIGKILL",
        "bit-equal to the undisturbed run",
        test="classification/test_resume_training.py::test_a_run_killed_in_mid_epoch_ends_as_if_nothing_had_happened",
    ),
    Fault(
        "cut latest checkpoint (classification)",
        "100 bytes lost",
        "the one before, the same end",
        test="classification/test_resume_training.py::test_a_run_whose_latest_checkpoint_was_cut_ends_the_same",
    ),
    Fault(
        "one of two processes fails",
        "an error in rank 0",
        "every process ends",
        test="classification/test_distributed_training.py::test_a_failure_of_rank_0_reaches_every_process",
    ),
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
    Fault(
        "operator: CUDA kernels under emulation",
        "every type, group size, window and switch, with sanitizers",
        "no access outside a tensor",
        test="ops/test_cuda_emulation.py::test_no_kernel_touches_memory_outside_its_tensors",
    ),
]

FAULTS = [*FORGED_CHECKPOINTS, *DAMAGED_CHECKPOINTS, *CONFIGURATIONS, *IMAGES, *RUNS, *RANDOM]


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
