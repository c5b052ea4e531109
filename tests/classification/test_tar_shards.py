"""Tar files in WebDataset's layout: the same samples as the folder, exact resume, and what is said about bad ones."""

import io
import os
import signal
import tarfile

import numpy as np
import pytest
from image_folders import configure, epochs, make_folder, picture, pixels_and_labels
from test_data_bad_input import message_of
from test_resume_training import assert_same_files
from tiny_training import history, make_images, stop_at, two_processes, write_config

from classification.data import build_loaders
from classification.data.splits import open_splits
from classification.data.tars import TarSamples, find_shards, read_tars
from classification.trainer.resume import list_checkpoints
from internimage import preemption
from internimage.preemption import EXIT_CODE
from tools import make_shards


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tar-index"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


@pytest.fixture
def shards(folder, tmp_path):
    make_shards.main([str(folder), str(tmp_path / "shards"), "--images-per-file", "7"])
    return tmp_path / "shards"


def png(seed=0):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    """A tar file of (name, content) pairs; a content that is a TarInfo is added as it is."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def read(path):
    return read_tars(path.parent, [path], lambda _: None)


# Writing and reading


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_shards_have_the_samples_of_the_folder(folder, shards, system, monkeypatch):
    if system == "windows":
        monkeypatch.delattr(os, "pread")
    plain, tars = build_loaders(configure(folder)), build_loaders(configure(shards, dataset="tar", workers=1))
    assert pixels_and_labels(tars.val) == pixels_and_labels(plain.val)
    samples, expected = tars.train.dataset.samples, plain.train.dataset.samples
    assert {(samples.read(i), samples.labels[i]) for i in range(24)} == {
        (expected.read(i), expected.labels[i]) for i in range(24)
    }
    assert (tars.num_classes, tars.class_names) == (3, ["cat", "dog", "eel"])
    assert (shards / "classes.txt").read_text().splitlines() == tars.class_names


def test_workers_and_memory_do_not_change_the_batches(shards):
    alone = epochs(build_loaders(configure(shards, dataset="tar")), 0, 1)
    held = build_loaders(configure(shards, "DATA.IMG_ON_MEMORY", "True", dataset="tar", workers=2))
    assert type(held.train.dataset.samples).__name__ == "MemorySamples"
    assert epochs(held, 0, 1) == alone


def test_shards_are_balanced_and_the_same_each_time(folder, shards, tmp_path):
    make_shards.main([str(folder), str(tmp_path / "again"), "--images-per-file", "7"])
    names = sorted(path.name for path in shards.glob("*.tar"))
    assert names == [f"train-{i:06}.tar" for i in range(4)] + [f"val-{i:06}.tar" for i in range(2)]
    for name in names:
        assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    for path in sorted(shards.glob("train-*.tar")):
        assert np.bincount(read(path).labels).tolist() == [2, 2, 2]


def test_names_with_dots_and_names_that_differ_in_suffix_get_keys_of_their_own(folder, tmp_path):
    for name in ("a.b.png", "a_b.png", "0.JPEG"):
        picture(1).save(folder / "train" / "cat" / name)
    make_shards.main([str(folder), str(tmp_path / "shards")])
    names = read(tmp_path / "shards" / "train-000000.tar").names.astype(str)
    assert len(names) == 27
    assert sum(name.endswith(".jpg") for name in names) == 1
    assert all(name.rpartition("/")[2].count(".") == 1 for name in names)


def test_the_webdataset_library_reads_what_we_write_and_we_read_what_it_writes(shards, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    ours = read(shards / "train-000000.tar")
    theirs = list(webdataset.WebDataset(str(shards / "train-000000.tar"), shardshuffle=False))
    assert [(row["png"], int(row["cls"])) for row in theirs] == [
        (ours.read(i), ours.labels[i]) for i in range(len(ours))
    ]
    with webdataset.TarWriter(str(tmp_path / "new.tar")) as writer:
        writer.write({"__key__": "n01440764_1", "png": png(), "cls": 389, "json": {"label": 389}})
    samples = read(tmp_path / "new.tar")
    assert (samples.read(0), samples.labels.tolist()) == (png(), [389])


def test_the_shards_of_timm_have_a_thousand_numbered_classes(tmp_path):
    row = [("n0_1.jpg", png()), ("n0_1.cls", b"999"), ("n0_1.json", b"{}")]
    write_tar(tmp_path / "d" / "imagenet1k-train-0000.tar", row)
    write_tar(tmp_path / "d" / "imagenet1k-validation-00.tar", row)
    splits = open_splits(configure(tmp_path / "d", dataset="tar"), print)
    assert (splits.num_classes, splits.class_names[999]) == (1000, "999")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/x-{08..11}.tar", ["a/x-08.tar", "a/x-09.tar", "a/x-10.tar", "a/x-11.tar"]),
        ("{9..10}.tar", ["9.tar", "10.tar"]),
        ("/b/{0..0}.tar", ["/b/0.tar"]),
    ],
)
def test_braces_are_expanded_as_by_the_shell(tmp_path, pattern, expected):
    assert find_shards(tmp_path, "train", pattern) == [tmp_path / name for name in expected]


def test_shards_may_be_named_by_a_pattern_or_a_folder(shards):
    (shards / "v").mkdir()
    for path in shards.glob("val-*.tar"):
        path.rename(shards / "v" / path.name)
    options = ("DATA.TRAIN_SHARDS", "train-{000001..000002}.tar", "DATA.VAL_SHARDS", "v")
    splits = open_splits(configure(shards, *options, dataset="tar"), print)
    assert (len(splits.train), len(splits.val)) == (12, 9)


# The index


def test_the_index_is_read_once_and_again_when_a_tar_file_changes(shards, cache):
    lines = []
    paths = find_shards(shards, "train", "")

    def headers_read():
        lines.clear()
        labels = read_tars(shards, paths, lines.append).labels.tolist()
        return labels, len(lines)

    labels, _ = headers_read()
    assert headers_read() == (labels, 0)
    data = paths[0].read_bytes()
    at = data.index(b".cls") // 512 * 512 + 512  # the first class number: a change that keeps the size
    paths[0].write_bytes(data[:at] + b"2" + data[at + 1 :])
    os.utime(paths[0], (1, 1))
    changed, count = headers_read()
    assert (changed[0], changed[1:], count) == (2, labels[1:], 1)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    assert headers_read() == (changed, 1)


def test_without_a_cache_folder_the_headers_are_read_each_time(shards, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path / "file"))
    lines = []
    assert len(read_tars(shards, find_shards(shards, "val", ""), lines.append)) == 9
    assert "set INTERNIMAGE_HOME" in lines[1]


def test_the_same_keys_in_two_tar_files_are_reported(shards):
    (shards / "train-000004.tar").write_bytes((shards / "train-000000.tar").read_bytes())
    lines = []
    assert len(read_tars(shards, find_shards(shards, "train", ""), lines.append)) == 30
    assert "6 keys of images are in several tar files" in lines[-1]


# Bad input


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return name, member


GOOD = [("a.png", b"x"), ("a.cls", b"0")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../a.png", b"x")], r"member '../a.png' leads out of the tar file"),
        ([("/a.png", b"x")], r"member '/a.png' leads out"),
        ([("a\n.png", b"x")], r"member 'a\\n.png' leads out of the tar file, or its name is not printable"),
        ([*GOOD, ("a.jpg", b"x")], r"member 'a.jpg' repeats the key a"),
        ([*GOOD, ("a.cls", b"1")], r"member 'a.cls' repeats the key a"),
        ([link("a.png")], r"member 'a.png' is not an ordinary file but a link"),
        ([("a.png", bytes(2000))], r"member 'a.png' has more than 0 MiB"),
        ([("a.cls", b"cat")], r"member 'a.cls' has b'cat', expected the number of a class"),
        ([("a.cls", b"-1")], r"has b'-1', expected"),
        ([("a.cls", b"1" * 400)], r"has b'11111111', expected"),
        ([*GOOD, ("b.png", b"x")], r"1 keys lack image or class; b has no class \(KEY.cls\)"),
        ([*GOOD, ("b.cls", b"1")], r"b has no image"),
        ([("readme.txt", b"x")], r"has no images; expected KEY.jpg and KEY.cls"),
    ],
)
def test_a_member_that_cannot_be_used_is_named(members, message, tmp_path, monkeypatch):
    monkeypatch.setattr("classification.data.tars.MAX_BYTES", 1000)
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(Exception, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["image", "header", "end", "empty", "gzip"])
def test_a_damaged_tar_file_is_named(damage, shards):
    path = shards / "train-000001.tar"
    data = bytearray(path.read_bytes())
    header = data.index(b".cls") // 512 * 512
    if damage == "header":
        data[header + 100] ^= 1
    end = {"image": 1500, "end": header + 1024, "empty": 0}.get(damage)
    path.write_bytes(b"\x1f\x8b" + data if damage == "gzip" else data[:end])
    message = message_of(lambda: build_loaders(configure(shards, dataset="tar")))
    assert f"cannot read {path}: " in message
    assert message.endswith("expected a complete, uncompressed tar file")


def test_missing_tar_files_are_named(shards):
    options = ("DATA.TRAIN_SHARDS", "train-{000000..000009}.tar")
    message = message_of(lambda: build_loaders(configure(shards, *options, dataset="tar")))
    assert f"cannot read the tar file {shards / 'train-000004.tar'}: No such file" in message


@pytest.mark.parametrize("pattern", ["", "nowhere", "train-{3..1}.tar", "{0..999999999}.tar", "{a,b}.tar", "{0..1}"])
def test_a_pattern_without_tar_files_is_explained(tmp_path, pattern):
    message = message_of(lambda: find_shards(tmp_path, "train", pattern))
    assert f"no tar files of train in {tmp_path / pattern}" in message
    assert "DATA.TRAIN_SHARDS 'NAME-{000000..001023}.tar'" in message


def test_a_tar_file_that_is_cut_during_the_run_is_named_with_its_image(shards):
    loaders = build_loaders(configure(shards, dataset="tar"))
    os.truncate(shards / "train-000000.tar", 1024)
    message = message_of(lambda: list(loaders.train))
    assert f"cannot read image {shards / 'train-000000.tar'}/" in message


def test_tar_files_in_a_zip_archive_are_refused(shards):
    assert "DATA.ZIP_MODE is True, expected False" in message_of(
        lambda: configure(shards, dataset="tar", flags=["--zip"])
    )


def test_a_folder_is_not_overwritten_by_shards(folder, capsys):
    with pytest.raises(SystemExit):
        make_shards.main([str(folder), str(folder)])
    assert "File exists; choose a new folder" in capsys.readouterr().err


# Training


def test_two_processes_train_on_disjoint_samples_of_shards_and_go_on_at_the_exact_step(tmp_path, monkeypatch):
    make_shards.main([str(make_images(tmp_path / "data")), str(tmp_path / "shards"), "--images-per-file", "20"])
    data = {"DATASET": "tar", "BATCH_SIZE": 4}
    config = write_config(
        tmp_path / "tiny.yaml", tmp_path / "shards", {"DATA": data, "TRAIN": {"EMA": {"ENABLE": False}}}
    )
    seen = tmp_path / "seen"
    read_image = TarSamples.read

    def note(self, index):
        with open(f"{seen}-{os.environ['RANK']}", "a") as file:
            file.write(f"{self.name(index)}\n")
        return read_image(self, index)

    monkeypatch.setattr(TarSamples, "read", note)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ("--cfg", str(config), "--opts", "TRAIN.EPOCHS", "1", "--output")
    assert [code for code, _ in two_processes(whole, *arguments, str(whole))] == [0, 0]
    first, second = ((tmp_path / f"seen-{rank}").read_text().splitlines() for rank in (0, 1))
    assert len(first) == len(second) == 32 + 12  # training, evaluation
    assert set(first).isdisjoint(second)
    assert len({*first, *second}) == 64 + 24
    with monkeypatch.context() as patches:
        patches.setattr(preemption, "_OTHERS_NEED", 0.2)
        stop_at(patches, "epoch 0/1 step 4/8", signal.SIGUSR1)
        assert [code for code, _ in two_processes(parts, *arguments, str(parts))] == [EXIT_CODE, 0]
    assert list_checkpoints(parts / "tiny")[0].name == "ckpt_epoch_0_step_5.pth"
    assert [code for code, _ in two_processes(parts, *arguments, str(parts))] == [0, 0]
    assert_same_files(parts / "tiny", whole / "tiny", "ckpt_epoch_0.pth")
    assert history(parts / "tiny") == history(whole / "tiny")
