"""Damage to a checkpoint is found when it is read: flipped bits, zeroed pages, lost ends."""

import os
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.serialization import config

from internimage import integrity
from internimage.checkpoint import load_file, save_atomic
from internimage.errors import CheckpointError


def content() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {
            f"layer{i}.weight": torch.rand(size, generator=generator) for i, size in enumerate([7, 3000, 500, 1])
        },
        "epoch": 3,
        "config": "BASE: ['']",
    }


def same(left: dict, right: dict) -> bool:
    if left.keys() != right.keys() or any(left[key] != right[key] for key in ("epoch", "config")):
        return False
    weights = [each["model"] for each in (left, right)]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[0]
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "good.pth"
    save_atomic(content(), path)
    return path


def data_ranges(path: Path) -> list[range]:
    """Where the contents of the archive's members lie."""
    raw = path.read_bytes()
    ranges = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            ranges.append(range(start, start + info.file_size))
    return ranges


def outcome(raw: bytes, path: Path) -> str:
    """What reading these bytes gives: `refused`, `same` (all values as they were), or `silently wrong`."""
    path.write_bytes(raw)
    integrity._verified.clear()  # the clock may be too coarse to tell one write from the next
    try:
        read = load_file(path)
        return "same" if same(read, content()) else "silently wrong"
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return "refused"


def test_a_flipped_bit_is_found_or_lies_where_there_is_no_data(file, tmp_path):
    raw = file.read_bytes()
    inside = [place for part in data_ranges(file) for place in part]
    outside = sorted(set(range(len(raw))) - set(inside))
    choose = random.Random(0)
    places = choose.sample(inside, 100) + choose.sample(outside, 100)
    outcomes = {}
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << choose.randrange(8)
        outcomes[place] = outcome(bytes(damaged), tmp_path / "x.pth")
    assert all(outcomes[place] == "refused" for place in places[:100])
    assert "silently wrong" not in outcomes.values()  # headers and padding


def test_a_zeroed_page_and_a_lost_end_are_found(file, tmp_path):
    raw = file.read_bytes()
    for start in range(0, len(raw), 4096):
        page = raw[start : start + 4096]
        assert outcome(raw[:start] + bytes(len(page)) + raw[start + 4096 :], tmp_path / "x.pth") == "refused"
        assert outcome(raw[:start], tmp_path / "x.pth") == "refused"
    assert outcome(raw[:-1], tmp_path / "x.pth") == "refused"
    assert outcome(raw, tmp_path / "x.pth") == "same"


def test_the_error_says_which_file_what_part_and_what_to_do(file, tmp_path):
    path = tmp_path / "hurt.pth"
    raw = bytearray(file.read_bytes())
    (part,) = [part for part in data_ranges(file) if len(part) == 12000]  # 3000 numbers
    raw[part.start + 5000] ^= 4
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"hurt\.pth: it is damaged: 1 of its \d+ parts .*data/1\); download it again, or resume"
    ):
        load_file(path)


def test_a_file_saved_without_checksums_is_read(tmp_path):
    try:
        config.save.compute_crc32 = False
        torch.save(content(), tmp_path / "x.pth")
    finally:
        config.save.compute_crc32 = True
    assert same(load_file(tmp_path / "x.pth"), content())


def test_a_file_from_before_zip_archives_is_read_and_its_truncation_found(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=False)
    assert same(load_file(path), content())
    assert outcome(path.read_bytes()[:-2000], path) == "refused"


@pytest.fixture
def summed(monkeypatch) -> list[str]:
    """The parts whose checksum was computed."""
    names: list[str] = []
    check = integrity._is_whole
    monkeypatch.setattr(
        integrity, "_is_whole", lambda archive, part: names.append(part.filename) or check(archive, part)
    )
    integrity._verified.clear()
    return names


def test_a_file_is_summed_up_once_a_process_until_it_changes(tmp_path, summed):
    save_atomic(content(), tmp_path / "x.pth")
    load_file(tmp_path / "x.pth")
    once = len(summed)
    assert {name.partition("/")[2] for name in summed} >= {f"data/{i}" for i in range(4)}
    load_file(tmp_path / "x.pth")
    assert len(summed) == once
    os.utime(tmp_path / "x.pth", ns=(0, 0))
    load_file(tmp_path / "x.pth")
    assert len(summed) == 2 * once


def test_a_file_that_was_compared_with_its_sha256_is_not_summed_up_as_well(tmp_path, summed):
    save_atomic(content(), tmp_path / "x.pth")
    integrity.mark_verified(tmp_path / "x.pth")
    assert same(load_file(tmp_path / "x.pth"), content()) and not summed
