"""The embedded Fashion-MNIST subset and the scripts that make and unpack it."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from demo.unpack import SHEETS, unpack
from internimage.errors import UserError
from tools import make_subset
from tools.make_subset import CLASSES


def cut(row):
    """The 28 x 28 images of one row of a sheet."""
    return np.split(row, row.shape[1] // 28, axis=1)


@pytest.fixture
def small_sheets(tmp_path):
    """One sheet of 80 random images, with its checksum, as make_subset.py would leave it."""
    images = np.random.default_rng(0).integers(0, 256, (80, 28, 28), dtype=np.uint8)
    sheets = tmp_path / "sheets"
    (sheets / "train").mkdir(parents=True)
    Image.fromarray(make_subset.make_sheet(images)).save(sheets / "train" / "Bag.png")
    digest = hashlib.sha256((sheets / "train" / "Bag.png").read_bytes()).hexdigest()
    (sheets / "SHA256SUMS").write_text(f"{digest}  train/Bag.png\n")
    return sheets, images


def test_the_subset_with_its_licence_stays_below_six_megabytes():
    assert sum(path.stat().st_size for path in SHEETS.rglob("*") if path.is_file()) < 6e6
    assert "Zalando SE" in (SHEETS / "LICENSE").read_text()


def test_the_sheets_hold_balanced_classes_and_no_image_of_training_and_validation_at_once():
    digests = {}
    for split, per_class in (("train", 1200), ("val", 200)):
        sheets = {path.stem: np.asarray(Image.open(path)) for path in (SHEETS / split).iterdir()}
        assert {name: sheet.size for name, sheet in sheets.items()} == dict.fromkeys(CLASSES, per_class * 28 * 28)
        tiles = [tile for sheet in sheets.values() for row in np.split(sheet, len(sheet) // 28) for tile in cut(row)]
        digests[split] = {hashlib.sha256(tile.tobytes()).digest() for tile in tiles}
    assert len(digests["train"]) > 11900
    assert not digests["train"] & digests["val"]


def test_every_sheet_is_the_one_of_the_checksums():
    for line in (SHEETS / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((SHEETS / name).read_bytes()).hexdigest() == digest, name


def test_unpacking_restores_every_image_of_a_sheet_in_order(small_sheets, tmp_path):
    sheets, images = small_sheets
    unpack(tmp_path / "out", sheets)
    restored = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out/train/Bag").iterdir())]
    assert np.array_equal(np.stack(restored), images)


def test_unpacking_twice_writes_nothing_the_second_time(small_sheets, tmp_path):
    assert unpack(tmp_path / "out", small_sheets[0]) == 80
    before = (tmp_path / "out/train/Bag/0000.png").stat().st_mtime_ns
    assert unpack(tmp_path / "out", small_sheets[0]) == 0
    assert (tmp_path / "out/train/Bag/0000.png").stat().st_mtime_ns == before


def test_a_damaged_sheet_is_named_and_leaves_nothing_behind(small_sheets, tmp_path):
    sheets, _ = small_sheets
    with (sheets / "train/Bag.png").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="Bag.png is missing or damaged"):
        unpack(tmp_path / "out", sheets)
    assert [path.name for path in tmp_path.iterdir()] == ["sheets"]


def test_a_folder_of_somebody_else_is_never_overwritten(small_sheets, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="was not made by the demo"):
        unpack(tmp_path / "out", small_sheets[0])


def test_a_place_that_cannot_be_written_to_is_said_in_one_line(small_sheets, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/out: Not a directory"):
        unpack(tmp_path / "file/out", small_sheets[0])


def test_a_changed_subset_is_unpacked_anew(small_sheets, tmp_path):
    sheets, _ = small_sheets
    unpack(tmp_path / "out", sheets)
    shutil.copy(sheets / "train/Bag.png", sheets / "train/Coat.png")
    sums = (sheets / "SHA256SUMS").read_text()
    (sheets / "SHA256SUMS").write_text(sums + sums.replace("Bag", "Coat"))
    assert unpack(tmp_path / "out", sheets) == 160


def test_making_the_subset_refuses_files_that_are_not_the_published_ones(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        make_subset.read_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match="not the published file"):
        make_subset.read_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")
