"""A tiny data set, a tiny model and ways to run train.py on them, shared by the tests of training."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ports import free_port
from torch import nn

from classification import train
from classification.trainer.tracking import Tracker

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (sys.executable, str(ROOT / "classification" / "train.py"))
CLASSES, TRAIN_IMAGES, VAL_IMAGES = 4, 16, 6  # images per class

MODEL = {
    "TYPE": "intern_image",
    "DROP_PATH_RATE": 0.1,
    "INTERN_IMAGE": {"CHANNELS": 16, "DEPTHS": [1, 1, 1, 1], "GROUPS": [1, 2, 4, 8]},
}
# For runs of several processes with shards, whose time goes by the number of parameters.
TWO_LEVELS = MODEL | {"INTERN_IMAGE": {"CHANNELS": 16, "DEPTHS": [1, 1], "GROUPS": [1, 2]}}


def make_images(folder: Path, classes: int = CLASSES) -> Path:
    """An ImageFolder of noise with one bright quadrant per class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for label in range(classes):
            (folder / split / f"class{label}").mkdir(parents=True)
            for i in range(count):
                image = rng.normal(100, 20, (32, 32, 3))
                row, column = divmod(label, 2)
                image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 90
                Image.fromarray(image.clip(0, 255).astype("uint8")).save(folder / split / f"class{label}/{i}.png")
    return folder


def write_config(path: Path, data: Path, changes: dict | None = None) -> Path:
    """A YAML file for the tiny model: 2 epochs of 8 steps of 8 images, with mixup, EMA and warm-up."""
    config = {
        "DATA": {"DATASET": "folder", "DATA_PATH": str(data), "IMG_SIZE": 32, "BATCH_SIZE": 8, "NUM_WORKERS": 0},
        "MODEL": MODEL,
        "TRAIN": {
            "EPOCHS": 2,
            "WARMUP_EPOCHS": 1,
            "BASE_LR": 2e-2,
            "EMA": {"ENABLE": True, "DECAY": 0.9},
        },
        "PRINT_FREQ": 4,
        "REPORT": False,  # drawing takes longer than training
    }
    for section, values in (changes or {}).items():
        config[section] = config.get(section, {}) | values if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(config))
    return path


def run_here(config: Path, output: Path, *arguments: str) -> None:
    """train.py in this process, with one thread as in `start`; a user error becomes SystemExit(2)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train.main(["--cfg", str(config), "--output", str(output), *arguments])
    finally:
        torch.set_num_threads(threads)


def start(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen:
    """A subprocess with one thread, its stdout readable line by line."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | environment
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen) -> list[str]:
    """Wait for processes that must succeed; return what they printed."""
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors
    return [printed for printed, _ in outputs]


def start_forked(
    printed: Path, *arguments: str, main: Callable[..., None] = train.main, **environment: str
) -> multiprocessing.Process:
    """`main(arguments)` in a process of its own; forked, which saves the time of importing everything again."""

    def run() -> None:
        os.environ |= environment
        torch.set_num_threads(1)
        with open(printed, "w", buffering=1) as sys.stdout:
            sys.stderr = sys.stdout
            main(arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def two_processes(
    folder: Path, *arguments: str, main: Callable[..., None] = train.main, slurm: bool = False, count: int = 2
) -> list[tuple[int, str]]:
    """Exit code and output of `main(arguments)` in two (or `count`) processes, as torchrun or srun would start them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    size, rank, local = "WORLD_SIZE", "RANK", "LOCAL_RANK"
    if slurm:
        size, rank, local = "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"
        common["SLURM_STEP_ID"] = "0"
    folder.mkdir(exist_ok=True, parents=True)
    outputs = [folder / f"printed by process {i}.txt" for i in range(count)]
    processes = [
        start_forked(output, *arguments, main=main, **common, **{size: str(count), rank: str(i), local: str(i)})
        for i, output in enumerate(outputs)
    ]
    for process in processes:
        process.join(120)
        process.kill()
    return [(process.exitcode, output.read_text()) for process, output in zip(processes, outputs)]


def without_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's BatchNorm takes its statistics from each process's own images.

    Without it several processes compute the same mathematics as one.
    """
    build = train.build_model

    def build_without_batch_norm(*args: object) -> nn.Module:
        model = build(*args)
        model.conv_head[1] = nn.Identity()
        return model

    monkeypatch.setattr(train, "build_model", build_without_batch_norm)


def train_without_batch_norm(arguments: Sequence[str]) -> None:
    """`train.main` on models `without_batch_norm`."""
    with pytest.MonkeyPatch.context() as patches:
        without_batch_norm(patches)
        train.main(arguments)


def stop_at(monkeypatch: pytest.MonkeyPatch, moment: str, number: int) -> None:
    """Send this process a signal when the main process logs a line that begins with `moment`."""
    log = Tracker.log

    def log_and_stop(self: Tracker, text: str) -> None:
        log(self, text)
        if self.active and text.startswith(moment):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Tracker, "log", log_and_stop)


def history(folder: Path) -> list[dict]:
    """The figures of each epoch, without those that depend on the clock."""
    records = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in records]


@contextmanager
def user_error(capsys: pytest.CaptureFixture, *words: str) -> Iterator[None]:
    """Expect exit code 2 and one line on stderr that holds `words`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        yield
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
