"""Kill whole trainings at random moments, start them again, and compare what they end with. For the long form.

The ordinary commands run, in every mode of `RUNS`, on the tiny data of the tests; SIGKILL goes to every process.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from in_children import ENVIRONMENT, ROOT

from classification.trainer.dcp import read
from internimage.checkpoint import extract_state_dict

__all__ = ["RUNS", "TASKS", "kill_often"]

TESTS = ROOT / "tests"
TASKS = ("classification", "detection", "segmentation")
# Task, processes and mode: further options of train.py.
RUNS = [(task, processes, "") for task in TASKS for processes in (1, 2)]
RUNS += [("classification", 2, "--shard fsdp"), ("classification", 2, "--shard fsdp --sharded-checkpoint")]


def _prepare(task: str, folder: Path) -> tuple[Path, list[str]]:
    """Write data and configuration; return the configuration and the arguments of train.py behind it."""
    sys.path.insert(0, str(TESTS / task))
    if task == "classification":
        from tiny_training import make_images, write_config

        changes = {"TRAIN": {"EPOCHS": 6, "WARMUP_EPOCHS": 1, "BASE_LR": 2e-2}}
        return write_config(folder / "tiny.yaml", make_images(folder / "data"), changes), []
    if task == "detection":
        from tiny_coco import make_config, make_data

        # Of the tiny detectors it is DINO whose loss depends on nothing random.
        options = ["train_cfg.max_epochs=6", "train_cfg.val_interval=2"]
        return make_config(folder, make_data(folder / "data"), "dino"), ["--cfg-options", *options]
    from tiny_scenes import make_config, make_data

    options = ["train_cfg.max_iters=20", "train_cfg.val_interval=10", "default_hooks.checkpoint.interval=2"]
    return make_config(folder, make_data(folder / "data")), ["--cfg-options", *options]


def _command(task: str, config: Path, options: list[str], run: Path, processes: int) -> list[str]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch += [str(ROOT / task / "train.py")]
    if task == "classification":
        return [*launch, "--cfg", str(config), "--output", str(run), *options]
    more = ["--launcher", "pytorch"] if processes > 1 else []
    return [*launch, str(config), "--work-dir", str(run), "--resume", *more, *options]


def _start(command: list[str], log: Path) -> subprocess.Popen:
    with open(log, "a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)


def _family(pid: int) -> list[int]:
    """A process and all that it has started: torchrun gives each of its processes a session of its own."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(other for file in lists for child in file.read_text().split() for other in _family(int(child)))]


def _kill(process: subprocess.Popen) -> None:
    family = _family(process.pid)
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(_is_running(pid) for pid in family):
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for_files(run: Path, process: subprocess.Popen) -> None:
    """Wait until a training has written its first file, which follows the imports."""
    while process.poll() is None and not (run.exists() and any(path.is_file() for path in run.rglob("*"))):
        time.sleep(0.01)


def _kill_one(command: list[str], run: Path, log: Path, choose: Callable[[], float]) -> float:
    """Start a training and kill it at the moment chosen; return it. A training that ended before is started anew."""
    while True:
        process = _start(command, log)
        _wait_for_files(run, process)
        moment = choose()
        try:
            code = process.wait(moment)
        except subprocess.TimeoutExpired:
            _kill(process)
            return moment
        if code:
            raise RuntimeError(f"a training failed before it was killed; see {log}")
        shutil.rmtree(run)


def _last(task: str, run: Path) -> dict[str, torch.Tensor] | None:
    pattern = {"classification": "ckpt_epoch_5*", "detection": "epoch_6.pth", "segmentation": "iter_20.pth"}[task]
    files = [path for path in run.rglob(pattern) if "_step_" not in path.name]
    return extract_state_dict(read(files[0])) if files else None


def _same(left: dict | None, right: dict | None) -> bool:
    return (
        bool(left)
        and bool(right)
        and left.keys() == right.keys()
        and all(torch.equal(left[key], right[key]) for key in left)
    )


def kill_often(
    task: str, processes: int, mode: str, count: int, folder: Path, seed: int, report: Callable[[str], None]
) -> Iterator[tuple[str, bool]]:
    """Yield, for each of `count` kills, what happened and whether the run ended as the undisturbed one did."""
    folder.mkdir(parents=True)
    config, options = _prepare(task, folder)

    def run(name: str) -> list[str]:
        return _command(task, config, [*mode.split(), *options], folder / name, processes)

    whole = _start(run("whole"), folder / "whole.log")
    _wait_for_files(folder / "whole", whole)
    began = time.monotonic()
    if whole.wait() != 0:
        yield f"the undisturbed run failed; see {folder / 'whole.log'}", False
        return
    length = time.monotonic() - began
    expected = _last(task, folder / "whole")
    report(f"{task}, {processes} processes {mode}: {length:.1f} s of training")
    choose = random.Random(seed)
    for number in range(count):
        name, log = f"killed{number}", folder / f"killed{number}.log"
        moment = _kill_one(run(name), folder / name, log, lambda: choose.uniform(0, length))
        what = f"killed {moment:.2f} s into it"
        again = _start(run(name), log)
        try:
            code = again.wait(20 * length + 300)
        except subprocess.TimeoutExpired:
            _kill(again)
            yield f"{what}; started again it hung; see {log}", False
            continue
        good = code == 0 and _same(expected, _last(task, folder / name))
        yield (what if good else f"{what}; then code {code} or other weights; see {log}"), good
