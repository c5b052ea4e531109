"""Checkpoints: written whole, rotated, found again; and a run that was killed ends like one that was not."""

import functools
import multiprocessing
import signal
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import (
    history,
    make_images,
    run_here,
    start_forked,
    stop_at,
    two_processes,
    user_error,
    write_config,
)
from torch import nn

from classification.trainer import engine, strategy
from classification.trainer.distributed import World
from classification.trainer.resume import RunState, find_latest, list_checkpoints, restore, save
from classification.trainer.strategy import Strategy
from internimage import preemption
from internimage.errors import CheckpointError, UserError
from internimage.preemption import EXIT_CODE
from internimage.runlock import lock_run


def make_state(build=lambda model: torch.optim.AdamW(model.parameters(), lr=0.1), **options):
    plain = Strategy(World())
    plain.prepare(nn.Linear(2, 2), build)
    return RunState(plain, torch.optim.lr_scheduler.StepLR(plain.optimizer, 1), **options)


def save_epoch(folder, state, epoch, **flags):
    state.epoch = epoch
    save(folder, state, "", **{"numbered": True, "best": False, "best_ema": False, "keep": 2} | flags)


def write_checkpoint(folder, state, without=()):
    """A checkpoint of `state` that lacks an entry, given by its keys."""
    checkpoint = state.strategy.state_dict() | state.rest("")
    *outer, last = without or [None]
    functools.reduce(dict.__getitem__, outer, checkpoint).pop(last, None)
    torch.save(checkpoint, folder / "x.pth")
    return folder / "x.pth"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_only_the_newest_checkpoints_are_kept_beside_the_best(tmp_path):
    state = make_state()
    for epoch in range(12):
        save_epoch(tmp_path, state, epoch, best=epoch == 3)
    assert names(tmp_path) == ["ckpt_epoch_10.pth", "ckpt_epoch_11.pth", "ckpt_epoch_best.pth"]
    assert list_checkpoints(tmp_path)[0].name == "ckpt_epoch_11.pth"
    assert torch.load(tmp_path / "ckpt_epoch_best.pth", weights_only=True)["epoch"] == 3


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_latest_checkpoint_falls_back_to_the_one_before_with_a_notice(damage, tmp_path):
    state = make_state()
    save_epoch(tmp_path, state, 0)
    save_epoch(tmp_path, state, 1)
    damage(tmp_path / "ckpt_epoch_1.pth")
    notices = []
    path = find_latest(World(), tmp_path, notices.append)
    assert path.name == "ckpt_epoch_0.pth"
    assert len(notices) == 1
    assert "ckpt_epoch_1.pth" in notices[0]


def test_if_no_checkpoint_can_be_read_the_run_does_not_start_anew(tmp_path):
    save_epoch(tmp_path, make_state(), 0)
    cut(tmp_path / "ckpt_epoch_0.pth")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        find_latest(World(), tmp_path, lambda _: None)


def test_an_empty_folder_has_no_latest_checkpoint(tmp_path):
    assert find_latest(World(), tmp_path, print) is None


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    state = make_state()
    save_epoch(tmp_path, state, 0)
    before = (tmp_path / "ckpt_epoch_0.pth").read_bytes()

    def full_disk(obj, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        save_epoch(tmp_path, state, 0)
    assert names(tmp_path) == ["ckpt_epoch_0.pth"]
    assert (tmp_path / "ckpt_epoch_0.pth").read_bytes() == before


def test_leftovers_of_a_kill_while_writing_are_removed(tmp_path):
    (tmp_path / ".ckpt_epoch_0.pth.123.tmp").write_text("half")
    save_epoch(tmp_path, make_state(), 1)
    assert names(tmp_path) == ["ckpt_epoch_1.pth"]


def test_the_best_checkpoints_are_written_before_the_numbered_one(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(strategy, "save_atomic", lambda payload, path: written.append(path.name))
    save_epoch(tmp_path, make_state(), 4, best=True, best_ema=True)
    assert written == ["ckpt_epoch_best.pth", "ckpt_epoch_ema_best.pth", "ckpt_epoch_4.pth"]


@pytest.mark.parametrize("key", ["model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy"])
def test_resuming_needs_every_part(key, tmp_path):
    path = write_checkpoint(tmp_path, make_state(), [key])
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        restore(make_state(), path, print)


def test_resuming_another_model_points_to_a_folder_of_its_own(tmp_path):
    path = write_checkpoint(tmp_path, make_state(), ["model", "weight"])
    with pytest.raises(CheckpointError, match="--tag NAME"):
        restore(make_state(), path, print)


def test_resuming_refuses_the_state_of_another_optimizer(tmp_path):
    path = write_checkpoint(tmp_path, make_state())
    other = make_state(lambda model: torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.1))
    with pytest.raises(CheckpointError, match="optimizer state"):
        restore(other, path, print)


def test_resuming_after_the_schedule_changed_says_so(tmp_path):
    state, notices = make_state(), []
    path = write_checkpoint(tmp_path, state)
    state.scheduler.step_size = 5
    restore(state, path, notices.append)
    assert len(notices) == 1
    assert "schedule differs" in notices[0]


def test_resuming_with_other_classes_points_to_a_folder_of_its_own(tmp_path):
    path = write_checkpoint(tmp_path, make_state(class_names=["cat", "dog"]))
    with pytest.raises(CheckpointError, match=r"of other classes \(2: cat, dog\) .* \(2: cat, eel\).*--tag NAME"):
        restore(make_state(class_names=["cat", "eel"]), path, print)


def assert_same_files(left, right, name="ckpt_epoch_2.pth"):
    """All tensors of two checkpoints are equal bit by bit, optimizer and averages included."""
    a, b = (torch.load(folder / name, weights_only=True) for folder in (left, right))
    a.pop("config"), b.pop("config")  # names the output folder
    flat_a, flat_b = (torch.utils._pytree.tree_flatten(x) for x in (a, b))
    assert flat_a[1] == flat_b[1]
    for x, y in zip(flat_a[0], flat_b[0]):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def in_the_next_second():
    """Wait: TensorBoard reads the files of a folder in the order of the seconds (then processes) in their names."""
    time.sleep(1.01 - time.time() % 1)


def tensorboard(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 3 epochs with every source of randomness: drop path, mixup, augmentation, and accumulation."""
    folder = tmp_path_factory.mktemp("undisturbed")
    changes = {"TRAIN": {"EPOCHS": 3, "ACCUMULATION_STEPS": 3}, "PRINT_FREQ": 1}
    config = write_config(folder / "tiny.yaml", make_images(folder / "data"), changes)
    run_here(config, folder)
    return config, folder / "tiny"


def assert_same_runs(folder, expected):
    assert_same_files(folder, expected)
    assert_same_files(folder, expected, "ckpt_epoch_best.pth")
    assert history(folder) == history(expected)


def test_a_run_killed_in_mid_epoch_ends_as_if_nothing_had_happened(undisturbed, tmp_path, monkeypatch, capsys):
    config, expected = undisturbed
    arguments = ("--cfg", str(config), "--output", str(tmp_path), "--opts", "DATA.NUM_WORKERS", "1")
    with monkeypatch.context() as patches:
        stop_at(patches, "epoch 1/3 step 2/8", signal.SIGKILL)
        victim = start_forked(tmp_path / "printed.txt", *arguments)
        victim.join()
    assert victim.exitcode == -signal.SIGKILL
    folder = tmp_path / "tiny"
    assert [path.name for path in list_checkpoints(folder)] == ["ckpt_epoch_0.pth"]
    in_the_next_second()
    run_here(config, tmp_path)
    assert "the next epoch is 1" in capsys.readouterr().out
    assert_same_runs(folder, expected)
    for tag in ("train/loss", "epoch/top1"):
        assert tensorboard(folder, tag) == tensorboard(expected, tag)


@pytest.mark.parametrize(
    ("moment", "number", "workers", "saved"),
    [
        ("epoch 0/3 step 1/8", signal.SIGTERM, 0, "ckpt_epoch_0_step_3.pth"),  # updates are after steps 3, 6 and 8
        ("epoch 1/3 step 6/8", signal.SIGUSR1, 2, "ckpt_epoch_1_step_6.pth"),
        ("epoch 1/3 step 8/8", signal.SIGUSR1, 0, "ckpt_epoch_1_step_8.pth"),
        ("epoch 1/3 validation", signal.SIGTERM, 2, "ckpt_epoch_1_step_8.pth"),
    ],
)
def test_a_run_stops_on_a_signal_and_goes_on_at_the_exact_step(
    moment, number, workers, saved, undisturbed, tmp_path, monkeypatch, capsys
):
    config, expected = undisturbed
    options = ("--opts", "DATA.NUM_WORKERS", str(workers))
    with monkeypatch.context() as patches:
        stop_at(patches, moment, number)
        with pytest.raises(SystemExit) as exit_info:
            run_here(config, tmp_path, *options)
    assert exit_info.value.code == EXIT_CODE
    assert f"stopped by {number.name}" in capsys.readouterr().out
    folder = tmp_path / "tiny"
    assert list_checkpoints(folder)[0].name == saved
    in_the_next_second()
    run_here(config, tmp_path, *options)
    assert f"resumed from {folder / saved}" in capsys.readouterr().out
    assert_same_runs(folder, expected)
    assert tensorboard(folder, "train/loss") == tensorboard(expected, "train/loss")


def test_two_processes_stop_together_and_go_on_at_the_exact_step(undisturbed, tmp_path, monkeypatch):
    config, _ = undisturbed
    arguments = ("--cfg", str(config), "--batch-size", "4", "--opts", "TRAIN.EPOCHS", "2", "--output")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [code for code, _ in two_processes(whole, *arguments, str(whole))] == [0, 0]
    with monkeypatch.context() as patches:
        patches.setattr(preemption, "_OTHERS_NEED", 1)
        stop_at(patches, "epoch 0/2 step 2/8", signal.SIGUSR1)  # the first process alone
        assert [code for code, _ in two_processes(parts, *arguments, str(parts))] == [EXIT_CODE, 0]
    # The vote of the update after step 3 is counted at the next one.
    assert list_checkpoints(parts / "tiny")[0].name == "ckpt_epoch_0_step_6.pth"
    assert [code for code, _ in two_processes(parts, *arguments, str(parts))] == [0, 0]
    assert_same_files(parts / "tiny", whole / "tiny", "ckpt_epoch_1.pth")
    assert history(parts / "tiny") == history(whole / "tiny")


def test_the_middle_of_an_epoch_fits_only_a_run_of_the_same_form(undisturbed, tmp_path, monkeypatch, capsys):
    config, _ = undisturbed
    with monkeypatch.context() as patches, pytest.raises(SystemExit):
        stop_at(patches, "epoch 0/3 step 1/8", signal.SIGTERM)
        run_here(config, tmp_path)
    with user_error(capsys, "ckpt_epoch_0_step_3.pth", "batch size", "delete the file"):
        run_here(config, tmp_path, "--batch-size", "4")


def test_validation_begins_when_the_epoch_is_saved(undisturbed, tmp_path, monkeypatch):
    config, _ = undisturbed
    seen = []

    def look(*_, **__):
        seen.append(names(tmp_path / "tiny"))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "evaluate_all", look)
    with pytest.raises(SystemExit):
        run_here(config, tmp_path, "--opts", "SAVE_FREQ", "9")
    assert "ckpt_epoch_0_step_8.pth" in seen[0]


def test_a_second_start_of_a_living_run_is_refused(undisturbed, tmp_path, capsys):
    config, _ = undisturbed
    (tmp_path / "tiny").mkdir()
    here, there = multiprocessing.get_context("fork").Pipe()

    def hold():
        lock_run(tmp_path / "tiny")
        there.send(None)
        there.recv()

    owner = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    owner.start()
    here.recv()
    with user_error(capsys, "another run uses", f"process {owner.pid} on"):
        run_here(config, tmp_path)
    assert not (tmp_path / "tiny" / "config.yaml").exists()
    owner.kill()
    owner.join()
    run_here(config, tmp_path, "--opts", "TRAIN.EPOCHS", "0")


def test_a_run_whose_latest_checkpoint_was_cut_ends_the_same(undisturbed, tmp_path, capsys):
    config, expected = undisturbed
    run_here(config, tmp_path, "--opts", "TRAIN.EPOCHS", "3", "SAVE_CKPT_NUM", "3")
    folder = tmp_path / "tiny"
    for name in ("ckpt_epoch_2.pth", "ckpt_epoch_1.pth"):
        cut(folder / name)
    capsys.readouterr()
    run_here(config, tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("skipping an unreadable checkpoint") == 2
    assert_same_files(folder, expected)
    assert history(folder) == history(expected)


def test_an_explicit_checkpoint_is_resumed(undisturbed, tmp_path, capsys):
    config, expected = undisturbed
    run_here(config, tmp_path, "--resume", str(expected / "ckpt_epoch_1.pth"))
    assert "the next epoch is 2" in capsys.readouterr().out
    assert_same_files(tmp_path / "tiny", expected)
