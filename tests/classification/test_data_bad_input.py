"""What the loaders say about data that are missing or broken."""

import os
import re
import signal
import threading
import zipfile

import pytest
import torch
from image_folders import configure, epochs, make_folder, pixels_and_labels

from classification.data import build_loaders, explained_worker_death
from classification.data.memory import _available
from classification.data.samples import Samples
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
    message = message_of(lambda: build_loaders(configure(folder, dataset="imagenet")))
    assert f"{folder} has no {split}/" in message


def test_one_image_in_each_class_cannot_be_split(tmp_path):
    root = make_folder(tmp_path, train=1, val=0) / "train"
    assert "too few to split some off" in message_of(lambda: build_loaders(configure(root)))


def test_a_split_of_a_longer_name_is_to_be_renamed(folder):
    (folder / "val").rename(folder / "valid")
    assert f"rename {folder / 'valid'} to val" in message_of(lambda: build_loaders(configure(folder)))


def test_an_empty_class_folder_is_named(folder):
    (folder / "train" / "fox").mkdir()
    (folder / "train" / "fox" / "notes.txt").write_text("")
    message = message_of(lambda: build_loaders(configure(folder)))
    assert f"class folder {folder / 'train' / 'fox'} has no images" in message


def test_a_split_without_class_folders_is_named(folder):
    (folder / "val").rename(folder / "old")
    (folder / "val").mkdir()
    assert f"{folder / 'val'} has no class folders" in message_of(lambda: build_loaders(configure(folder)))


def test_a_class_unknown_in_training_is_named(folder):
    (folder / "val" / "eel").rename(folder / "val" / "elk")
    assert "has a class elk that is not in the training set" in message_of(lambda: build_loaders(configure(folder)))


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
    assert len(loaders.train.bad_images) == 2
    assert all("dog" in line for line in loaders.train.bad_images)


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
    assert len(loaders.val.bad_images) == 1


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


def test_a_pipe_among_the_images_is_named_and_not_waited_for(folder):
    pipe = folder / "train" / "dog" / "99.png"
    os.mkfifo(pipe)
    assert f"{pipe} is a pipe" in message_of(lambda: build_loaders(configure(folder)))
    pipe.rename(folder / "pipe")
    pipe.symlink_to(folder / "pipe")
    loaders = build_loaders(configure(folder))
    assert f"{pipe}: it is not a regular file" in message_of(lambda: list(loaders.train) + list(loaders.train))


@pytest.fixture
def impatient(monkeypatch):
    """Workers that do not answer are given up at once."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)


def workers_of(loader):
    loader.start_workers()
    return loader._iterator._workers


def test_a_file_system_that_does_not_answer_is_reported_with_the_file(folder, monkeypatch, impatient):
    read = Samples.read

    def read_or_hang(self, index):
        if self.name(index).endswith("eel/1.png"):
            threading.Event().wait()
        return read(self, index)

    monkeypatch.setattr(Samples, "read", read_or_hang)
    loaders = build_loaders(configure(folder, "DATA.TIMEOUT", 1, workers=1))
    (worker,) = workers_of(loaders.train)
    message = message_of(lambda: list(loaders.train))
    assert f"for 1 seconds (process {worker.pid} is reading {folder / 'train/eel/1.png'})" in message
    assert not worker.is_alive()


def test_a_stopped_worker_is_reported_and_ended(folder, impatient):
    loaders = build_loaders(configure(folder, "DATA.TIMEOUT", 1, workers=1))
    (worker,) = workers_of(loaders.train)
    os.kill(worker.pid, signal.SIGSTOP)
    assert f"for 1 seconds (processes {worker.pid})" in message_of(lambda: [list(loaders.train) for _ in range(3)])
    assert not worker.is_alive()


def test_a_killed_worker_is_reported(folder):
    loaders = build_loaders(configure(folder, workers=1))
    (worker,) = workers_of(loaders.train)

    def lose_the_worker():
        with explained_worker_death("--opts DATA.NUM_WORKERS"):
            worker.kill()
            for _ in range(9):
                list(loaders.train)

    # Which of its two sentences PyTorch says depends on the moment.
    died = r"(\) is killed by signal: Killed|\) exited unexpectedly); if memory ran out"
    assert re.match(rf"DataLoader worker \(pid.* {worker.pid}{died}", message_of(lose_the_worker))


def test_workers_leave_the_signals_of_slurm_to_the_main_process(folder):
    loaders = build_loaders(configure(folder, workers=1))
    (worker,) = workers_of(loaders.train)
    list(loaders.train)  # so it has begun
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert len(list(loaders.train)) == 6


def test_large_images_are_refused_on_disk_and_in_archives(folder, monkeypatch):
    monkeypatch.setattr("classification.data.samples.MAX_BYTES", 1 << 20)
    image = folder / "train" / "cat" / "0.png"
    os.truncate(image, (1 << 20) + 1)
    message = message_of(lambda: [list(build_loaders(configure(folder)).train) for _ in range(3)])
    assert f"{image}: it has more than 1 MiB" in message
    for split in ("train", "val"):
        with zipfile.ZipFile(folder / f"{split}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("0.png", bytes((1 << 20) + 1))
        (folder / f"{split}_map.txt").write_text("0.png 0\n")
    message = message_of(lambda: build_loaders(configure(folder, flags=["--zip"])))
    assert f"0.png in {folder / 'train.zip'} has more than 1 MiB unpacked" in message


def write_files(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_a_limit_of_the_container_bounds_the_memory_for_images(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_files(proc, meminfo="MemTotal: 99 kB\nMemAvailable: 9000 kB\n")
    write_files(proc / "self", cgroup="0::/job/step\n")
    assert _available(proc, groups) == 9000 * 1024
    write_files(groups / "job/step", memory__max="max\n", memory__current="5\n", memory__stat="")
    statistics = "anon 700\ninactive_file 50\nactive_file 30\n"
    write_files(groups / "job", memory__max="1000\n", memory__current="800\n", memory__stat=statistics)
    assert _available(proc, groups) == 1000 - 800 + 80
    # Version 1, in a container that sees its own group as the root.
    write_files(proc / "self", cgroup="4:cpu,cpuacct:/docker/1\n3:memory:/docker/1\n")
    statistics = "inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 0\n"
    write_files(groups / "memory", memory__stat=statistics)
    write_files(groups / "memory", **{"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "300"})
    assert _available(proc, groups) == 500 - 300 + 20
