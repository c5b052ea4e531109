"""Kill whole trainings at random moments, start them again, and compare what they end with. For the long form.

`main` of train.py runs, in every mode of `RUNS`, on the tiny data of the tests; SIGKILL goes to every process.
"""

import functools
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Process
from pathlib import Path

import torch
from in_children import ROOT

from classification.trainer.dcp import read
from internimage.checkpoint import extract_state_dict

__all__ = ["RUNS", "TASKS", "kill_often"]

TESTS = ROOT / "tests"
FORK = multiprocessing.get_context("fork")
TASKS = ("classification", "detection", "segmentation")
# Task, processes and mode: further options of train.py.
RUNS = [(task, processes, "") for task in TASKS for processes in (1, 2)]
RUNS += [("classification", 2, "--shard fsdp"), ("classification", 2, "--shard fsdp --sharded-checkpoint")]


def _train_command(task: str) -> Callable[[list[str]], None]:
    """`main` of the task's train.py."""
    if task == "classification":
        return importlib.import_module("classification.train").main
    module = importlib.import_module("internimage.mm.runner")
    return functools.partial(module.train, getattr(module, task.upper()))


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


def _arguments(task: str, config: Path, options: list[str], run: Path, processes: int) -> list[str]:
    if task == "classification":
        return ["--cfg", str(config), "--output", str(run), *options]
    more = ["--launcher", "pytorch"] if processes > 1 else []
    return [str(config), "--work-dir", str(run), "--resume", *more, *options]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _start(task: str, arguments: list[str], processes: int, log: Path) -> Process:
    """The task's train.py in a process group of its own, forked, since starting takes longer than the training."""
    main = _train_command(task)

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        main(arguments)

    def lead() -> None:
        os.setsid()
        os.chdir(ROOT)
        torch.set_num_threads(1)
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if processes == 1:
            return main(arguments)
        os.environ |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        ranks = [FORK.Process(target=rank, args=(number,)) for number in range(processes)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        sys.exit(max(abs(process.exitcode) for process in ranks))

    process = FORK.Process(target=lead)
    process.start()
    return process


def _kill(process: Process) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _wait_for_files(run: Path, process: Process) -> None:
    """Wait until a training has written its first file."""
    while process.is_alive() and not (run.exists() and any(path.is_file() for path in run.rglob("*"))):
        time.sleep(0.01)


def _kill_one(start: Callable[[], Process], run: Path, log: Path, choose: Callable[[], float]) -> float:
    """Start a training and kill it at the moment chosen; return it. A training that ended before is started anew."""
    while True:
        process = start()
        _wait_for_files(run, process)
        moment = choose()
        process.join(moment)
        if process.is_alive():
            _kill(process)
            return moment
        if process.exitcode:
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

    def start(name: str) -> Process:
        arguments = _arguments(task, config, [*mode.split(), *options], folder / name, processes)
        return _start(task, arguments, processes, folder / f"{name}.log")

    whole = start("whole")
    _wait_for_files(folder / "whole", whole)
    began = time.monotonic()
    whole.join()
    if whole.exitcode:
        yield f"the undisturbed run failed; see {folder / 'whole.log'}", False
        return
    length = time.monotonic() - began
    expected = _last(task, folder / "whole")
    report(f"{task}, {processes} processes {mode}: {length:.1f} s of training")
    choose = random.Random(seed)
    for number in range(count):
        name, log = f"killed{number}", folder / f"killed{number}.log"
        moment = _kill_one(lambda: start(name), folder / name, log, lambda: choose.uniform(0, length))  # noqa: B023
        what = f"killed {moment:.2f} s into it"
        again = start(name)
        again.join(20 * length + 300)
        if again.is_alive():
            _kill(again)
            yield f"{what}; started again it hung; see {log}", False
            continue
        good = again.exitcode == 0 and _same(expected, _last(task, folder / name))
        yield (what if good else f"{what}; then code {again.exitcode} or other weights; see {log}"), good
