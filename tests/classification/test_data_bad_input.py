"""What the loaders say about data that are missing or broken."""

import pytest
import torch
from image_folders import configure, epochs, make_folder, pixels_and_labels

from classification.data import build_loaders
from internimage.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images")


def spoil(path):
    """Cut the file in two, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def message_of(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_data_folder_is_named(tmp_path):
    assert f"no data folder {tmp_path / 'nowhere'}" in message_of(
        lambda: build_loaders(configure(tmp_path / "nowhere"))
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(folder, split):
    (folder / split).rename(folder / "elsewhere")
    message = message_of(lambda: build_loaders(configure(folder)))
    assert f"{folder} has no {split}/" in message


def test_an_empty_class_folder_is_named(folder):
    (folder / "train" / "fox").mkdir()
    (folder / "train" / "fox" / "notes.txt").write_text("")
    message = message_of(lambda: build_loaders(configure(folder)))
    assert f"class folder {folder / 'train' / 'fox'} holds no images" in message


def test_a_split_without_class_folders_is_named(folder):
    (folder / "val").rename(folder / "old")
    (folder / "val").mkdir()
    assert f"{folder / 'val'} has no class folders" in message_of(lambda: build_loaders(configure(folder)))


def test_a_class_unknown_in_training_is_named(folder):
    (folder / "val" / "eel").rename(folder / "val" / "elk")
    assert "has a class elk that the training set has not" in message_of(lambda: build_loaders(configure(folder)))


def test_hidden_folders_are_no_classes(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert build_loaders(configure(folder)).num_classes == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_image_is_named_in_the_main_process(folder, split, workers):
    path = spoil(folder / split / "dog" / "1.png")
    loaders = build_loaders(configure(folder, workers=workers))
    message = message_of(lambda: list(getattr(loaders, split)))
    assert f"cannot read image {path}" in message
    assert "--skip-bad-images" in message


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_file_that_is_no_image_is_named(folder, content):
    path = folder / "train" / "cat" / "0.png"
    path.write_bytes(content)
    assert str(path) in message_of(lambda: list(build_loaders(configure(folder)).train))


def test_an_image_that_disappears_is_named(folder):
    loaders = build_loaders(configure(folder))
    (folder / "train" / "cat" / "0.png").unlink()
    assert "cat/0.png" in message_of(lambda: list(loaders.train))


def test_an_unreadable_image_in_memory_is_named(folder):
    path = folder / "train" / "cat" / "0.png"
    path.write_bytes(b"")
    loaders = build_loaders(configure(folder, "DATA.IMG_ON_MEMORY", "True"))
    assert str(path) in message_of(lambda: list(loaders.train))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_once_and_replaced(folder, workers):
    spoil(folder / "train" / "dog" / "1.png")
    spoil(folder / "train" / "dog" / "2.png")
    loaders = build_loaders(configure(folder, workers=workers, flags=["--skip-bad-images"]))
    batches = list(loaders.train) + list(loaders.train)
    assert [len(targets) for _, targets in batches] == [4] * 12
    assert loaders.skipped == 2
    assert all("dog" in line for line in loaders.bad_images)


def test_replacements_do_not_depend_on_the_number_of_workers(folder):
    spoil(folder / "train" / "dog" / "1.png")
    flags = ["--skip-bad-images"]
    alone = epochs(build_loaders(configure(folder, flags=flags)), 0, 1)
    assert epochs(build_loaders(configure(folder, workers=2, flags=flags)), 0, 1) == alone


def test_skipped_images_are_left_out_of_evaluation(folder):
    good = pixels_and_labels(build_loaders(configure(folder)).val)
    spoil(folder / "val" / "dog" / "1.png")
    loaders = build_loaders(configure(folder, batch=1, flags=["--skip-bad-images", "--eval"]))
    assert len(list(loaders.val)) == len(good) - 1
    assert pixels_and_labels(loaders.val) < good
    assert loaders.skipped == 1


def test_a_substitute_is_the_next_good_image_in_its_own_augmentation(folder):
    spoil(folder / "train" / "cat" / "7.png")  # the last cat; a dog follows
    dataset = build_loaders(configure(folder)).train.dataset
    (substitute, neighbour), bad = dataset.__getitems__([(0, 7), (0, 8)])
    assert substitute[1] == neighbour[1] == 1
    assert not torch.equal(substitute[0], neighbour[0])
    assert len(bad) == 1


def test_a_set_of_only_bad_images_is_an_error(folder):
    for path in (folder / "train").rglob("*.png"):
        spoil(path)
    loaders = build_loaders(configure(folder, flags=["--skip-bad-images"]))
    assert "too many images in a row cannot be read" in message_of(lambda: list(loaders.train))
