"""Class folders with symlinks and duplicates: every image once, every loop ended, every duplicate named."""

import errno
import os

import pytest
from image_folders import configure, make_folder

from classification.data import build_loaders
from classification.data.files import ImageFiles, class_folders
from classification.data.samples import read_folder
from classification.inference import list_images
from internimage.errors import UserError

CLASSES = {"cat": 0, "dog": 1}


@pytest.fixture
def train(tmp_path):
    """A folder with eight images of cats and eight of dogs."""
    return make_folder(tmp_path / "images", CLASSES) / "train"


def read(root):
    """The names that a folder gives, and the lines that it reports."""
    lines = []
    samples = read_folder(root, {name: i for i, name in enumerate(class_folders(root))}, lines.append)
    assert samples.labels.tolist() == [CLASSES[name.split(b"/")[0].decode()] for name in samples.names]
    return [os.fsdecode(name) for name in samples.names], lines


def images(folder):
    return [f"{folder}/{i}.png" for i in range(8)]


def test_without_links_and_duplicates_nothing_is_reported(train):
    (train / "cat" / "a").mkdir()
    (train / "cat" / "0.png").rename(train / "cat" / "a" / "z.png")
    assert read(train) == ([*images("cat")[1:], "cat/a/z.png", *images("dog")], [])


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/"])
def test_loops_lead_to_nothing_new(train, target):
    for name in ("loop", "another", "third"):
        (train / "cat" / name).symlink_to(target)
    names, (line,) = read(train)
    assert names == images("cat") + images("dog")
    assert "already found: 3" in line and f"{train}/cat/another" in line


def test_folders_that_link_to_each_other_end(train):
    for one, other in (("a", "b"), ("b", "a")):
        (train / "cat" / one).mkdir()
        (train / "cat" / one / "0.png").write_bytes(b"")
        (train / "cat" / one / "link").symlink_to(f"../{other}")
        (train / "cat" / one / "loop").symlink_to("loop")
    names, (line,) = read(train)
    assert names == [*images("cat"), "cat/a/0.png", "cat/b/0.png", *images("dog")]
    assert "already found: 2" in line


def test_linked_folders_are_followed_once_and_real_paths_win(train, tmp_path):
    make_folder(tmp_path / "elsewhere", ["more"])
    for name in ("a", "x"):
        (train / "cat" / name).symlink_to(tmp_path / "elsewhere/train/more")
    (train / "cat" / "m").mkdir()
    (train / "cat" / "m" / "0.png").write_bytes(b"")
    (train / "cat" / "k").symlink_to("m")
    names, (line,) = read(train)
    assert names == [*images("cat"), *images("cat/a"), "cat/m/0.png", *images("dog")]
    assert "already found: 2" in line


def test_a_class_folder_may_itself_be_a_link(train, tmp_path):
    (train / "cat").rename(tmp_path / "kept")
    (train / "cat").symlink_to(tmp_path / "kept")
    assert read(train) == (images("cat") + images("dog"), [])


def test_a_class_folder_that_is_a_loop_is_refused_by_name(train):
    (train / "again").symlink_to(".")
    with pytest.raises(UserError, match="again has no images of its own") as error:
        read_folder(train, {**CLASSES, "again": 2})
    assert "\n" not in str(error.value)


def test_a_linked_image_is_taken_once(train, tmp_path):
    (train / "dog" / "7.png").rename(tmp_path / "pool.png")
    for name in ("p.png", "q.png"):
        (train / "dog" / name).symlink_to(tmp_path / "pool.png")
    (train / "dog" / "00.png").symlink_to("0.png")
    (train / "dog" / "gone.png").symlink_to("nowhere.png")
    names, (line,) = read(train)
    assert names == [*images("cat"), *images("dog")[:7], "dog/gone.png", "dog/p.png"]
    assert "already found: 2" in line and "dog/00.png" in line


def test_a_folder_that_links_make_part_of_two_classes_is_named(train):
    (train / "dog" / "friends").symlink_to("../cat")
    names, (line,) = read(train)
    assert names == [*images("cat"), *images("dog"), *images("dog/friends")]
    assert f"two classes: 1; first: {train}/cat and {train}/dog/friends" in line


def test_names_that_differ_in_case_or_extension_alone_are_counted_and_named(train):
    for name in ("0.jpg", "0.JPG", "1.PNG"):
        (train / "cat" / name).write_bytes(b"")
    names, (line,) = read(train)
    assert len(names) == 19
    assert "case or extension: 3;" in line and f"{train}/cat/0.JPG and {train}/cat/0.jpg" in line


def test_the_loaders_report_duplicates(train, capsys):
    (train / "cat" / "loop").symlink_to(".")
    assert len(build_loaders(configure(train.parent)).train.dataset) == 16
    assert f"{train}/cat/loop" in capsys.readouterr().out


def test_feature_extraction_follows_links_by_the_same_rule(train, tmp_path):
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "link").symlink_to(train)
    (tmp_path / "view" / "again").symlink_to(train / "cat")
    (train / "cat" / "loop").symlink_to(tmp_path)
    found = list_images(tmp_path / "view")
    assert len(found) == 16 and len({path.resolve() for path in found}) == 16


def test_a_folder_that_cannot_be_read_is_named(train, monkeypatch):
    (train / "cat" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # file permissions do not stop root
    with pytest.raises(UserError, match="cannot read folder .*closed: Permission denied"):
        ImageFiles(train / "cat")
