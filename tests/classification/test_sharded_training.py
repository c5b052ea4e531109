"""Shards: one training, whatever is spread over how many processes; and checkpoints that all of them read."""

import copy
import functools
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import zlib

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny_training import (
    TWO_LEVELS,
    history,
    make_images,
    run_here,
    stop_at,
    train_without_batch_norm,
    two_processes,
    user_error,
    write_config,
)
from torch import nn

import internimage
from classification.config import get_config, parse_args
from classification.trainer import dcp as dcp_folders
from classification.trainer import fsdp
from classification.trainer.dcp import read
from classification.trainer.distributed import World
from classification.trainer.fsdp import FullyShard
from classification.trainer.resume import RunState, find_latest, restore, save
from internimage import preemption
from internimage.checkpoint import save_atomic
from internimage.errors import CheckpointError, UserError
from internimage.preemption import EXIT_CODE
from tools import dcp_to_pth

# Mixup and drop path draw per process, and a batch norm takes its statistics per process: without them every number
# of processes computes the same mathematics.
SAME = {
    "AUG": {"MIXUP": 0.0, "CUTMIX": 0.0},
    "MODEL": TWO_LEVELS | {"DROP_PATH_RATE": 0.0},
    "TRAIN": {"EPOCHS": 5, "WARMUP_EPOCHS": 1, "BASE_LR": 2e-2, "EMA": {"ENABLE": True, "DECAY": 0.9}},
    "EVAL_FREQ": 5,
    "SAVE_FREQ": 4,
    "PRINT_FREQ": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), SAME)


def run(config, output, count, *options):
    """20 updates of 16 images, divided among `count` processes; the folder of the run."""
    arguments = ("--cfg", str(config), "--output", str(output), "--batch-size", str(16 // count), *options)
    results = two_processes(output, *arguments, main=train_without_batch_norm, count=count)
    assert [code for code, _ in results] == [0] * count, results
    return output / "tiny"


@pytest.fixture(scope="module")
def alone(config, folder):
    return run(config, folder / "alone", 1)


@pytest.fixture(scope="module")
def four(config, folder):
    return run(config, folder / "four", 4, "--shard", "fsdp", "--sharded-checkpoint")


def losses(folder):
    return torch.tensor([float(x) for x in re.findall(r"step .* loss ([\d.]+)", (folder / "log.txt").read_text())])


def last(folder):
    return read(next(path for path in folder.glob("ckpt_epoch_4*") if "step" not in path.name))


def assert_same_training(folder, expected):
    got, wanted = last(folder), last(expected)
    for name in ("model", "model_ema"):
        assert got[name].keys() == wanted[name].keys()
        for key, value in wanted[name].items():
            # Relative to the tensor; measured 2e-6. The steps are of 1e-2 and more.
            assert (got[name][key] - value).double().norm() <= 1e-5 * value.double().norm(), key
    assert wanted["optimizer"]["state"][0]["step"] == 20
    assert history(folder)[-1]["top1"] == history(expected)[-1]["top1"]


@pytest.mark.parametrize(("shard", "count"), [("none", 4), ("zero", 4), ("fsdp", 2)])
def test_the_weights_after_20_updates_do_not_depend_on_shards_and_processes(shard, count, config, alone, tmp_path):
    assert_same_training(run(config, tmp_path, count, "--shard", shard), alone)


def test_four_processes_with_fsdp_train_as_one(alone, four):
    assert sorted(path.name for path in four.glob("ckpt*")) == [
        "ckpt_epoch_3",
        "ckpt_epoch_4",
        "ckpt_epoch_best",
        "ckpt_epoch_ema_best",
    ]
    assert_same_training(four, alone)


@pytest.mark.parametrize("options", [("--shard", "fsdp"), ("--use-zero",)])
def test_two_processes_go_on_from_the_folder_of_four(options, config, alone, four, tmp_path):
    shutil.copytree(four / "ckpt_epoch_3", tmp_path / "tiny" / "ckpt_epoch_3")
    assert_same_training(run(config, tmp_path, 2, *options), alone)
    torch.testing.assert_close(losses(tmp_path / "tiny"), losses(alone)[16:], rtol=1e-5, atol=0)


def flat(state, key=()):
    if isinstance(state, dict):
        return {k: v for name, value in state.items() for k, v in flat(value, (*key, name)).items()}
    return {key: state}


def assert_equal(got, wanted):
    got, wanted = ({k: v for k, v in flat(state).items() if k != ("config",)} for state in (got, wanted))
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        same = torch.equal(got[key], value) if isinstance(value, torch.Tensor) else got[key] == value
        assert same, key


def test_fsdp_stops_in_mid_epoch_and_ends_as_ddp_that_went_through(config, folder, tmp_path, monkeypatch):
    (folder / "random").mkdir(exist_ok=True)
    changes = {"MODEL": TWO_LEVELS, "PRINT_FREQ": 1}  # mixup, drop path and batch norm too
    own = write_config(folder / "random" / "tiny.yaml", folder / "data", changes)
    arguments = ("--cfg", str(own), "--batch-size", "4", "--output")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [code for code, _ in two_processes(whole, *arguments, str(whole))] == [0, 0]
    sharded = (*arguments, str(parts), "--shard", "fsdp", "--sharded-checkpoint")
    with monkeypatch.context() as patches:
        patches.setattr(preemption, "_OTHERS_NEED", 1)
        stop_at(patches, "epoch 0/2 step 2/8", signal.SIGUSR1)
        assert [code for code, _ in two_processes(parts, *sharded)] == [EXIT_CODE, 0]
    assert (parts / "tiny" / "ckpt_epoch_0_step_3").is_dir()  # the vote of step 2 is counted at the next
    assert [code for code, _ in two_processes(parts, *sharded)] == [0, 0]
    # A sum of two gradients has only one order: FSDP, DDP and both forms of a checkpoint are bit-equal.
    for name in ("ckpt_epoch_1", "ckpt_epoch_best"):
        assert_equal(read(parts / "tiny" / name), read(whole / "tiny" / f"{name}.pth"))
    for ours, theirs in zip(history(parts / "tiny"), history(whole / "tiny"), strict=True):
        assert ours.pop("grad_norm") == pytest.approx(theirs.pop("grad_norm"), rel=1e-6)  # adds up by shards
        assert ours == theirs


def test_half_precision_offload_and_unequal_batches_of_evaluation(config, folder, tmp_path):
    data = shutil.copytree(folder / "data", tmp_path / "data")
    for number in range(3):  # of 21 images one process has 11, in two batches of 10, the other one batch
        (data / f"val/class{number}/0.png").unlink()
    amp = (
        "--amp",
        "fp16",
        "--data-path",
        str(data),
        "--use-checkpoint",
        "--batch-size",
        "10",
        "--accumulation-steps",
        "2",
    )
    epochs = (*amp, "--opts", "TRAIN.EPOCHS", "2", "EVAL_FREQ", "1", "SAVE_FREQ", "1")
    plain = run(config, tmp_path / "plain", 2, *epochs)
    (tmp_path / "sharded" / "tiny").mkdir(parents=True)
    shutil.copy(plain / "ckpt_epoch_0.pth", tmp_path / "sharded" / "tiny")
    sharded = run(config, tmp_path / "sharded", 2, "--shard", "fsdp", "--cpu-offload", *epochs)
    ours, theirs = (read(each / "ckpt_epoch_1.pth") for each in (sharded, plain))
    assert ours["scaler"] == theirs["scaler"]
    torch.testing.assert_close(losses(sharded), losses(plain)[-len(losses(sharded)) :], rtol=2e-3, atol=0)
    assert history(sharded)[-1]["val_loss"] == pytest.approx(history(plain)[-1]["val_loss"], rel=2e-3)


# Folders, in one process


def make_state():
    """A state whose checkpoints are folders, in a process group of one."""
    strategy = FullyShard(World(), folders=True)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    strategy.prepare(model, lambda model: torch.optim.AdamW(model.parameters(), lr=0.1), ema_decay=0.5)
    return RunState(strategy, torch.optim.lr_scheduler.StepLR(strategy.optimizer, 1))


def in_child(test):
    """Run a test in a forked process: process groups and threads of this one would disturb later forks."""

    @functools.wraps(test)
    def forked(**arguments):
        child = multiprocessing.get_context("fork").Process(target=test, kwargs=arguments)
        child.start()
        child.join(120)
        child.kill()
        assert child.exitcode == 0

    return forked


def step(state):
    for parameter in state.strategy.parameters:
        parameter.grad = torch.full_like(parameter, random.random())
    state.strategy.update(1.0)
    state.strategy.average()


def save_epochs(folder, state, *epochs, best=False):
    for state.epoch in epochs:
        step(state)
        save(folder, state, "", numbered=True, best=best, best_ema=False, keep=2)
        step(state)  # while it is being written
    state.strategy.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@in_child
def test_folders_rotate_and_replace_plain_files_and_leftovers(tmp_path):
    state = make_state()
    for number in range(2):
        (tmp_path / f"ckpt_epoch_{number}.pth").write_text("")
    (tmp_path / ".ckpt_epoch_2.1234.tmp").mkdir()
    (tmp_path / ".ckpt_epoch_2.1234.tmp" / "__0_0.distcp").write_text("half")
    save_epochs(tmp_path, state, 1, 2, 3, best=True)
    assert names(tmp_path) == ["ckpt_epoch_2", "ckpt_epoch_3", "ckpt_epoch_best"]
    assert read(tmp_path / "ckpt_epoch_best")["epoch"] == 3


@in_child
def test_a_folder_has_the_state_of_the_moment_of_saving_and_restores_it(tmp_path, capsys):
    state = make_state()
    step(state)
    expected = copy.deepcopy(state.strategy.state_dict() | state.rest(""))
    save(tmp_path, state, "", numbered=True, best=False, best_ema=False, keep=2)
    for _ in range(3):
        step(state)
    state.strategy.wait()
    (checkpoint,) = tmp_path.iterdir()
    assert_equal(read(checkpoint), expected)
    restore(state, checkpoint, print)
    assert_equal(state.strategy.state_dict(), {k: expected[k] for k in ("model", "model_ema", "optimizer", "scaler")})
    with pytest.raises(CheckpointError, match="tools/dcp_to_pth.py"):
        internimage.load(checkpoint, device="cpu")
    dcp_to_pth.main([str(checkpoint)])
    assert_equal(torch.load(tmp_path / "ckpt_epoch_-1.pth", weights_only=True), expected)
    with user_error(capsys, "not a folder", "--sharded-checkpoint"):
        dcp_to_pth.main([str(tmp_path / "ckpt_epoch_-1.pth")])


@in_child
def test_a_kill_before_a_folder_is_complete_leaves_the_one_before(tmp_path, monkeypatch):
    def kill_in_second(folder, rest, paths):
        if paths[-1].name == "ckpt_epoch_1":
            os.kill(os.getpid(), signal.SIGKILL)
        dcp_folders.complete(folder, rest, paths)

    with monkeypatch.context() as patches:
        patches.setattr(fsdp, "complete", kill_in_second)
        victim = multiprocessing.get_context("fork").Process(target=lambda: save_epochs(tmp_path, make_state(), 0, 1))
        victim.start()
        victim.join(60)
    assert victim.exitcode == -signal.SIGKILL
    assert names(tmp_path) == [f".ckpt_epoch_1.{victim.pid}.tmp", "ckpt_epoch_0"]
    assert find_latest(World(), tmp_path, print) == tmp_path / "ckpt_epoch_0"


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut, os.remove])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "rest.pth"])
@in_child
def test_a_damaged_folder_falls_back_to_the_one_before_with_a_notice(name, damage, tmp_path):
    state = make_state()
    save_epochs(tmp_path, state, 0, 1)
    damage(tmp_path / "ckpt_epoch_1" / name)
    notices = []
    assert find_latest(World(), tmp_path, notices.append) == tmp_path / "ckpt_epoch_0"
    assert len(notices) == 1
    assert "ckpt_epoch_1" in notices[0]


class Forged:
    def __reduce__(self):
        return os.system, ("echo run",)


@in_child
def test_metadata_that_would_run_code_is_not_loaded(tmp_path):
    state = make_state()
    save_epochs(tmp_path, state, 0)
    folder = tmp_path / "ckpt_epoch_0"
    (folder / ".metadata").write_bytes(data := pickle.dumps(Forged()))
    rest = torch.load(folder / "rest.pth", weights_only=True)
    save_atomic(rest | {"checksum of .metadata": zlib.crc32(data)}, folder / "rest.pth")
    with pytest.raises(CheckpointError, match="system is not loaded for safety"):
        read(folder)


@in_child
def test_a_full_disk_ends_the_run_with_its_reason_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    state = make_state()
    save_epochs(tmp_path, state, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", full)
    with pytest.raises(UserError, match=r"ckpt_epoch_1: .*No space left on device"):
        save_epochs(tmp_path, state, 1)
    assert find_latest(World(), tmp_path, print) == tmp_path / "ckpt_epoch_0"


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "none"),
        (("--use-zero",), "zero"),
        (("--opts", "TRAIN.OPTIMIZER.USE_ZERO", "True"), "zero"),
        (("--shard", "fsdp", "--opts", "TRAIN.OPTIMIZER.USE_ZERO", "True"), "fsdp"),
        (("--shard", "none", "--opts", "TRAIN.OPTIMIZER.USE_ZERO", "True"), "none"),
        (("--opts", "TRAIN.SHARD", "zero"), "zero"),
    ],
)
def test_use_zero_is_the_older_name_of_shard_zero(options, expected, config):
    settings = get_config(parse_args(["--cfg", str(config), *options]))
    shard, zero = settings.TRAIN.SHARD, settings.TRAIN.OPTIMIZER.USE_ZERO
    assert (shard, zero) == (expected, expected == "zero")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cpu-offload",), ("--cpu-offload needs --shard fsdp",)),
        (("--sharded-checkpoint", "--use-zero"), ("--sharded-checkpoint needs --shard fsdp", "now it is --shard zero")),
        (("--compile", "--shard", "fsdp"), ("--compile is not supported with --shard fsdp",)),
        (("--shard", "fsdp", "--opts", "TRAIN.FP16_GRADIENTS", "True"), ("FP16_GRADIENTS is not supported with",)),
    ],
)
def test_options_that_do_not_fit_together_are_errors(options, words, config, tmp_path, capsys):
    with user_error(capsys, *words):
        run_here(config, tmp_path, *options)
