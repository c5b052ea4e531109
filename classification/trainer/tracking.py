"""Logging of a run: terminal with progress bar, log.txt, history.jsonl (one JSON object per epoch), and figures.

Figures go to TensorBoard files or, if asked, to Weights & Biases.

Only rank 0 writes. On resuming, the figures of epochs that are repeated are dropped.
"""

import hashlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from internimage.errors import UserError
from internimage.files import atomic_path
from internimage.runlock import lock_run

from .distributed import World, sum_over_processes

__all__ = ["EpochMeter", "Tracker", "duration", "prepare_folder", "read_history", "write_config"]

T = TypeVar("T")


def prepare_folder(folder: Path) -> None:
    """Create and lock the output folder of a run.

    Raises:
        UserError: the folder cannot be written, or another run uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_run(folder)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}; change --output") from None


def write_config(folder: Path, config_yaml: str) -> None:
    """Write the resolved configuration of a run to its folder. Raises `UserError`."""
    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(config_yaml)


def read_history(path: Path, report: Callable[[str], None]) -> list[dict[str, float]]:
    """Read the records of a history.jsonl. Broken lines, left by a kill or a full disk, are skipped and reported."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for line in lines:
        try:
            record = {key: float(value) for key, value in json.loads(line).items()}
            records.append(record | {"epoch": int(record["epoch"])})
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            continue
    if len(records) < len(lines):
        report(f"{path}: skipping {len(lines) - len(records)} of {len(lines)} lines, which are not records of an epoch")
    return records


class WandbWriter:
    """Figures on Weights & Biases, with the three methods of TensorBoard's `SummaryWriter` that are used here.

    A resumed run continues the one of its folder.

    Raises:
        UserError: the run cannot be started.
    """

    def __init__(self, folder: Path) -> None:
        import wandb

        number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        try:
            self._run = wandb.init(
                project="internimage", name=folder.name, id=number, resume="allow", dir=folder, config=settings
            )
        except Exception as error:  # wandb has many types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"Weights & Biases: {reason}; run `wandb login`, or set WANDB_MODE=offline") from error

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def flush(self) -> None:
        """Do nothing: wandb sends figures in the background, and ignores those of steps that a resumed run repeats."""

    def close(self) -> None:
        self._run.finish()


class Tracker:
    """Logging of a run. On ranks other than 0 every method does nothing.

    If a file cannot be written, for example on a full disk, a message is printed once, figures are switched off, and
    training continues.

    Args:
        folder: of log.txt, history.jsonl and the TensorBoard files; None to print only.
        world: rank and number of processes.
        logger: of the figures, `tensorboard` or `wandb`.

    Raises:
        UserError: wandb is asked for, but not installed.
    """

    def __init__(self, folder: Path | None, world: World, logger: str = "tensorboard") -> None:
        if logger == "wandb" and importlib.util.find_spec("wandb") is None:
            raise UserError("wandb is not installed; install it with pip install wandb, or omit --logger")
        self._logger = logger
        self.active = world.is_main
        self.folder = folder if self.active else None
        self.on_terminal = self.active and sys.stderr.isatty()
        self.writer = None
        self._complained = False

    def begin(self, epoch: int, step: int) -> None:
        """Open the figures of a run whose next epoch and update have these numbers; drop later figures."""
        if self.folder is None:
            return
        with self._forgiving():
            history = self.folder / "history.jsonl"
            if history.exists():
                kept = [record for record in read_history(history, self.log) if record["epoch"] < epoch]
                with atomic_path(history) as temporary:
                    temporary.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
            if self._logger == "wandb":
                self.writer = WandbWriter(self.folder)
                return
            # Figures carry the number of finished updates: those at `step` belong to the epoch before.
            self.writer = SummaryWriter(self.folder, purge_step=step + 1 if step else None, flush_secs=30)

    def log(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        if not self.active:
            return
        with tqdm.external_write_mode(sys.stdout):
            print(text, flush=True)
        self._append_log(text)

    def steps(self, batches: Iterable[T], *, total: int, label: str, begin: int = 0) -> Iterator[T]:
        """Iterate with a progress bar on a terminal; elsewhere `note` prints lines. `begin` steps are already done."""
        if not self.on_terminal:
            yield from batches
            return
        with tqdm(batches, initial=begin, total=total, desc=label, dynamic_ncols=True, leave=False) as bar:
            self._bar = bar
            yield from bar

    def note(self, text: str, short: str) -> None:
        """Write a progress line to log.txt, and to stdout or, on a terminal, `short` beside the bar."""
        if not self.active:
            return
        if self.on_terminal:
            self._bar.set_postfix_str(short)
            self._append_log(text)
        else:
            self.log(text)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write figures at an update number."""
        if self.writer is not None:
            with self._forgiving():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Write a picture `(H, W, 3)`, RGB uint8, at an update number, to TensorBoard only."""
        if isinstance(self.writer, SummaryWriter):
            with self._forgiving():
                self.writer.add_image(name, pixels, step, dataformats="HWC")

    def epoch(self, record: dict[str, float]) -> None:
        """Append one epoch's figures to history.jsonl."""
        self._append("history.jsonl", json.dumps(record))

    def flush(self) -> None:
        """Write figures that wait for a thread to disk."""
        if self.writer is not None:
            with self._forgiving():
                self.writer.flush()

    def close(self) -> None:
        """Close the figures."""
        if self.writer is not None:
            with self._forgiving():
                self.writer.close()

    def _append_log(self, text: str) -> None:
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _append(self, name: str, line: str) -> None:
        if self.folder is not None:
            with self._forgiving(), open(self.folder / name, "a") as file:
                file.write(line + "\n")

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError) as error:
            if not self._complained:
                print(f"cannot write log files in {self.folder}: {error}; training goes on", file=sys.stderr)
            self._complained = True
            self.writer = None  # it would raise the same error at each figure


class EpochMeter:
    """Collects loss and gradient norm of every step.

    Reading a value synchronizes with the GPU, so values stay tensors until `flush`, which averages the loss over the
    processes. Values that are not finite are not averaged.

    Args:
        world: rank and number of processes.
        bad_in_a_row: of the updates before.
        skips_overflow: with finite losses, infinite gradients are normal: a gradient scaler looks for its scale.

    Attributes:
        skipped: updates left out because the gradient was not finite. The same in all processes, as the next one.
        bad_in_a_row: how many of them, or of those before this epoch, were the last ones.
    """

    def __init__(self, world: World, bad_in_a_row: int = 0, *, skips_overflow: bool = False) -> None:
        self.world, self.bad_in_a_row, self.skips_overflow = world, bad_in_a_row, skips_overflow
        self.skipped = 0
        self.images = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.started = self._mark = time.perf_counter()
        self._loss_tensors: list[torch.Tensor] = []
        self._norm_tensors: list[torch.Tensor] = []
        self._images_at_mark = 0
        self._reported = (0, 0)  # losses and norms at the last report

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Add a forward pass: its mean loss (scalar) and the number of images of this process."""
        self._loss_tensors.append(loss.detach().float())
        self.images += images * self.world.size

    def add_norm(self, norm: torch.Tensor) -> None:
        """Add an update: the gradient norm before clipping (scalar)."""
        self._norm_tensors.append(norm.detach().float())

    def flush(self) -> dict[str, float]:
        """Mean loss and gradient norm, and images per second, since the last flush."""
        self._read()
        losses, norms = self.losses[self._reported[0] :], self.norms[self._reported[1] :]
        self._reported = len(self.losses), len(self.norms)
        now = time.perf_counter()
        rate = (self.images - self._images_at_mark) / max(now - self._mark, 1e-9)
        self._mark, self._images_at_mark = now, self.images
        window = {"loss": _mean(losses), "images_per_second": rate}
        return window | ({"grad_norm": _mean(norms)} if norms else {})

    def _read(self) -> None:
        """Move the collected tensors to the lists of numbers."""
        if not self._loss_tensors:
            return
        losses = sum_over_processes(self.world, torch.stack(self._loss_tensors)).div(self.world.size).tolist()
        norms = torch.stack(self._norm_tensors).tolist() if self._norm_tensors else []
        self._loss_tensors, self._norm_tensors = [], []
        finite = [loss for loss in losses if math.isfinite(loss)]
        scaling = self.skips_overflow and len(finite) == len(losses)
        for norm in norms:
            bad = not (math.isfinite(norm) or scaling)
            self.skipped += bad
            self.bad_in_a_row = self.bad_in_a_row + 1 if bad else 0
        self.losses += finite
        self.norms += [norm for norm in norms if math.isfinite(norm)]

    def state_dict(self) -> dict[str, Any]:
        """State to continue in the same epoch with `load_state_dict`. All processes must call it."""
        self._read()
        state = {"losses": self.losses, "norms": self.norms, "reported": self._reported, "images": self.images}
        state |= {"skipped": self.skipped, "bad_in_a_row": self.bad_in_a_row}
        return state | {"seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict` of another meter."""
        self.losses, self.norms = list(state["losses"]), list(state["norms"])
        self._reported = tuple(state["reported"])
        self.skipped, self.bad_in_a_row = state.get("skipped", 0), state.get("bad_in_a_row", 0)
        self.images = self._images_at_mark = state["images"]
        self.started -= state["seconds"]

    def summary(self) -> dict[str, float]:
        """Mean loss and gradient norm, images per second and seconds of the whole epoch."""
        seconds = time.perf_counter() - self.started
        return {
            "train_loss": _mean(self.losses),
            "grad_norm": _mean(self.norms),
            "images_per_second": self.images / max(seconds, 1e-9),
            "seconds": seconds,
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
