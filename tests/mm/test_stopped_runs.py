"""A training that is asked to stop saves in the middle of an epoch; resumed, it ends bit for bit the same."""

import multiprocessing
import signal
import sys
from pathlib import Path

import pytest
import tiny_coco
import tiny_scenes
import torch
from processes import in_two_processes

from internimage import peers, preemption
from internimage.checkpoint import load_file
from internimage.mm.runner import DETECTION, SEGMENTATION, train
from internimage.preemption import EXIT_CODE

# Shuffled data, transforms and a model that all draw at random, an average of the weights, a checkpoint in between.
RANDOM = """
train_dataloader["sampler"]["shuffle"] = True
train_pipeline.insert(2, dict(type="RandomFlip", prob=0.5))
custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="SendSignal")]
custom_imports = dict(imports=["internimage.mm", "send_signal"])
"""
DETECTOR = RANDOM + 'model["backbone"]["drop_path_rate"] = 0.3\ntrain_cfg["val_interval"] = 2\n'
SEGMENTOR = RANDOM + (
    'model["backbone"]["drop_path_rate"] = 0.3\ntrain_cfg.update(max_iters=6, val_interval=3)\n'
    'default_hooks["checkpoint"] = dict(interval=2)\n'
)
# The second and third validation do not count as better than the first: the training ends after epoch 3.
EARLY = """
train_cfg.update(max_epochs=5, val_interval=1)
custom_hooks.append(dict(type="EarlyStoppingHook", monitor="coco/bbox_mAP", min_delta=9.0, patience=2))
"""
SEND_SIGNAL = """
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class SendSignal(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        step, _, name = os.environ.get("STOP_AT", "").partition(" ")
        if step == str(runner.iter) and runner.rank == runner.world_size - 1:
            os.kill(os.getpid(), getattr(signal, name))

    def before_val_epoch(self, runner):
        if os.environ.get("STOP_AT") == "validation":
            raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Configurations `detection.py` and `segmentation.py`, and their runs that nothing disturbs."""
    folder = tmp_path_factory.mktemp("preemption")
    (folder / "send_signal.py").write_text(SEND_SIGNAL)
    sys.path.append(str(folder))
    for name, module, text in (("detection", tiny_coco, DETECTOR), ("segmentation", tiny_scenes, SEGMENTOR)):
        (folder / name).mkdir()
        path = module.make_config(folder / name, module.make_data(folder / name / "data"))
        path.write_text(path.read_text() + text)
        path.rename(folder / f"{name}/config.py")
    yield folder
    sys.path.remove(str(folder))


def run(folder: Path, name: str, work_dir: str, *options: str) -> int:
    """Train; return the exit code."""
    task = SEGMENTATION if name == "segmentation" else DETECTION
    try:
        train(task, [str(folder / name / "config.py"), "--work-dir", str(folder / name / work_dir), *options])
    except SystemExit as stopped:
        return stopped.code
    return 0


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


LAST = {"detection": "epoch_2.pth", "segmentation": "iter_6.pth"}


def assert_same_end(folder: Path, name: str, whole: str, stopped: str) -> None:
    one, other = (load_file(folder / name / run / LAST[name]) for run in (whole, stopped))
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
        assert same(one.get(part), other.get(part)), part
    assert "ema_state_dict" in one and not (folder / name / stopped / "stopped.pth").exists()
    assert sorted(path.name for path in (folder / name / stopped).glob("*.pth")) == sorted(
        path.name for path in (folder / name / whole).glob("*.pth")
    )


@pytest.mark.parametrize(("name", "stop_at"), [("detection", "0 SIGTERM"), ("segmentation", "4 SIGUSR1")])
def test_a_stopped_training_goes_on_to_the_same_end(name, stop_at, folder, monkeypatch):
    assert run(folder, name, "whole") == 0
    monkeypatch.setenv("STOP_AT", stop_at)
    assert run(folder, name, "stopped") == EXIT_CODE
    assert (folder / name / "stopped/last_checkpoint").read_text().endswith("stopped.pth")
    monkeypatch.delenv("STOP_AT")
    workers = ["--cfg-options", "train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True"]
    before = set(multiprocessing.active_children())
    assert run(folder, name, "stopped", "--resume", *workers) == 0
    assert set(multiprocessing.active_children()) <= before  # its workers have ended with it
    log = max((folder / name / "stopped").glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()
    assert f"resumed epoch: 0, iter: {int(stop_at[0]) + 1}" in log
    assert_same_end(folder, name, "whole", "stopped")


@pytest.mark.parametrize(("name", "stop_at"), [("detection", "1 SIGUSR1"), ("segmentation", "0 SIGTERM")])
def test_if_one_of_two_processes_is_asked_both_stop_and_go_on(name, stop_at, folder, monkeypatch):
    options = ["--launcher", "pytorch", "--cfg-options", "train_dataloader.batch_size=1"]
    assert in_two_processes(lambda: run(folder, name, "two", *options)) == [0, 0]
    monkeypatch.setenv("STOP_AT", stop_at)
    monkeypatch.setattr(preemption, "_OTHERS_NEED", 0)
    assert in_two_processes(lambda: run(folder, name, "two stopped", *options)) == [
        EXIT_CODE,
        0,
    ]  # torchrun and srun end all at the first other code
    monkeypatch.delenv("STOP_AT")
    assert in_two_processes(lambda: run(folder, name, "two stopped", "--resume", *options)) == [0, 0]
    assert_same_end(folder, name, "two", "two stopped")


def test_if_one_of_two_processes_is_killed_the_other_ends_and_says_so(folder, monkeypatch, capfd):
    monkeypatch.setattr(peers, "_LAUNCHER", 0)
    monkeypatch.setenv("STOP_AT", "3 SIGKILL")
    options = ["--launcher", "pytorch", "--cfg-options", "train_dataloader.batch_size=1"]
    for name in LAST:
        assert in_two_processes(lambda: run(folder, name, "killed", *options)) == [1, -signal.SIGKILL]  # noqa: B023
        assert capfd.readouterr().err.count("process 1 of 2 (") == 1
    monkeypatch.delenv("STOP_AT")

    assert in_two_processes(lambda: run(folder, "segmentation", "killed", *options)) == [0, 0]
    if not (folder / "segmentation/two").exists():  # without the test before
        assert in_two_processes(lambda: run(folder, "segmentation", "two", *options)) == [0, 0]
    assert_same_end(folder, "segmentation", "two", "killed")


def test_a_validation_begins_after_a_checkpoint_and_is_made_up_for(folder, monkeypatch):
    monkeypatch.setenv("STOP_AT", "validation")
    assert run(folder, "segmentation", "validation") == 130
    assert load_file(folder / "segmentation/validation/stopped.pth")["meta"]["iter"] == 3
    monkeypatch.delenv("STOP_AT")
    assert run(folder, "segmentation", "validation", "--resume") == 0
    assert_same_end(folder, "segmentation", "whole", "validation")


def test_early_stopping_counts_validations_across_stops_and_stays_stopped(folder, monkeypatch):
    (folder / "early").mkdir()
    (folder / "early/config.py").write_text((folder / "detection/config.py").read_text() + EARLY)
    monkeypatch.setenv("STOP_AT", "4 SIGTERM")  # in epoch 3, after two validations
    assert run(folder, "early", "stopped") == EXIT_CODE
    monkeypatch.delenv("STOP_AT")
    for _ in range(2):  # the second time everything is done
        assert run(folder, "early", "stopped") == 0
        last = load_file(folder / "early/stopped/epoch_3.pth")
        assert last["message_hub"]["runtime_info"]["early_stopping"][1] == 1 and "ema_state_dict" in last
        assert sorted(path.name for path in (folder / "early/stopped").glob("epoch_*.pth"))[-1] == "epoch_3.pth"
