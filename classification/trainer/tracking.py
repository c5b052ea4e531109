"""What a run tells: lines and a progress bar on the terminal, log.txt, history.jsonl and TensorBoard.

Only rank 0 writes. `history.jsonl` has one JSON object per epoch, from which a training curve can be drawn. On
resuming, the figures of epochs that run again are dropped, so that no epoch is there twice.
"""

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from internimage.errors import UserError
from internimage.files import atomic_path
from internimage.runlock import lock_run

from .distributed import World, sum_over_processes

__all__ = ["EpochMeter", "Tracker", "duration", "prepare_folder"]

T = TypeVar("T")


def prepare_folder(folder: Path, config_yaml: str) -> None:
    """Make a run's output folder, keep other runs out of it, and note the resolved configuration in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_run(folder)
        (folder / "config.yaml").write_text(config_yaml)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}; change --output") from None


class Tracker:
    """The voice of a run. On other ranks than 0 every method does nothing.

    Training goes on if a file cannot be written, on a full disk for example; that is printed once, and TensorBoard is
    given up.

    Args:
        folder: where log.txt, history.jsonl and the TensorBoard files go; None to print only.
        world: this process among the others.
    """

    def __init__(self, folder: Path | None, world: World) -> None:
        self.active = world.is_main
        self.folder = folder if self.active else None
        self.on_terminal = self.active and sys.stderr.isatty()
        self.writer = None
        self._complained = False

    def begin(self, epoch: int, step: int) -> None:
        """Open history.jsonl and TensorBoard for a run whose next epoch and update have these numbers, from 0.

        Later figures of a run that was interrupted are dropped.
        """
        if self.folder is None:
            return
        with self._forgiving():
            self._drop_history_from(epoch)
            # Figures carry the number of finished updates: what is at `step` itself belongs to the epoch before.
            self.writer = SummaryWriter(self.folder, purge_step=step + 1 if step else None, flush_secs=30)

    def log(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        if not self.active:
            return
        with tqdm.external_write_mode(sys.stdout):
            print(text, flush=True)
        self._append_log(text)

    def steps(self, batches: Iterable[T], *, total: int, label: str, begin: int = 0) -> Iterator[T]:
        """Iterate with a progress bar on a terminal; elsewhere `note` prints lines. `begin` steps are done already."""
        if not self.on_terminal:
            yield from batches
            return
        with tqdm(batches, initial=begin, total=total, desc=label, dynamic_ncols=True, leave=False) as bar:
            self._bar = bar
            yield from bar

    def note(self, text: str, short: str) -> None:
        """A progress line: log.txt and, without a terminal, stdout; on a terminal `short` goes beside the bar."""
        if not self.active:
            return
        if self.on_terminal:
            self._bar.set_postfix_str(short)
            self._append_log(text)
        else:
            self.log(text)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write TensorBoard scalars at an update number."""
        if self.writer is not None:
            with self._forgiving():
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def epoch(self, record: dict[str, float]) -> None:
        """Append one epoch's figures to history.jsonl."""
        self._append("history.jsonl", json.dumps(record))
        if self.writer is not None:
            with self._forgiving():
                self.writer.flush()

    def close(self) -> None:
        """Flush TensorBoard."""
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
            self.writer = None  # it would raise the same error for ever

    def _drop_history_from(self, epoch: int) -> None:
        path = self.folder / "history.jsonl"
        if not path.exists():
            return
        lines = path.read_text(errors="replace").splitlines()
        epochs = [_epoch_of(line) for line in lines]
        if broken := epochs.count(None):
            self.log(f"{path}: leaving out {broken} lines that are not the record of an epoch")
        with atomic_path(path) as temporary:
            kept = [line + "\n" for line, number in zip(lines, epochs) if number is not None and number < epoch]
            temporary.write_text("".join(kept))


def _epoch_of(line: str) -> int | None:
    """Number of a record's epoch; None if it has none, or was cut by a kill."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, TypeError, KeyError):
        return None


class EpochMeter:
    """Collects loss and gradient norm of every step on the device, and reads them only now and then.

    Reading a value makes a GPU wait, so values stay tensors until `flush`, which also averages the loss over the
    processes and stops the run on the first loss that is not finite, naming the step.

    Args:
        world: this process among the others.
        epoch: number of the epoch, for messages.
        skips_overflow: a gradient scaler is at work, which leaves out updates with infinite gradients by itself.
    """

    def __init__(self, world: World, epoch: int, *, skips_overflow: bool = False) -> None:
        self.world, self.epoch, self.skips_overflow = world, epoch, skips_overflow
        self.images = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.started = self._mark = time.perf_counter()
        self._loss_tensors: list[torch.Tensor] = []
        self._norm_tensors: list[torch.Tensor] = []
        self._images_at_mark = 0
        self._reported = (0, 0)  # losses and norms at the last report

    def add(self, loss: torch.Tensor, images: int) -> None:
        """One forward pass: its mean loss (scalar) and how many images this process saw."""
        self._loss_tensors.append(loss.detach().float())
        self.images += images * self.world.size

    def add_norm(self, norm: torch.Tensor) -> None:
        """One update: the gradient norm before clipping (scalar)."""
        self._norm_tensors.append(norm.detach().float())

    def flush(self) -> dict[str, float]:
        """Mean loss and gradient norm, and images per second, since the last flush.

        Raises:
            UserError: on every process, if the loss of any process or the gradient was not finite.
        """
        self._read()
        losses, norms = self.losses[self._reported[0] :], self.norms[self._reported[1] :]
        self._reported = len(self.losses), len(self.norms)
        now = time.perf_counter()
        rate = (self.images - self._images_at_mark) / max(now - self._mark, 1e-9)
        self._mark, self._images_at_mark = now, self.images
        window = {"loss": sum(losses) / len(losses), "images_per_second": rate}
        return window | ({"grad_norm": sum(norms) / len(norms)} if norms else {})

    def _read(self) -> None:
        """Move what was added to the lists of numbers."""
        if not self._loss_tensors:
            return
        losses = sum_over_processes(self.world, torch.stack(self._loss_tensors)).div(self.world.size).tolist()
        norms = torch.stack(self._norm_tensors).tolist() if self._norm_tensors else []
        self._loss_tensors, self._norm_tensors = [], []
        for step, loss in enumerate(losses, start=len(self.losses)):
            if not math.isfinite(loss):
                self._stop("loss", loss, f"step {step}")
        for update, norm in enumerate(norms, start=len(self.norms)):
            if not math.isfinite(norm) and not self.skips_overflow:
                self._stop("gradient norm", norm, f"update {update}")
        self.losses += losses
        self.norms += [norm for norm in norms if math.isfinite(norm)]

    def state_dict(self) -> dict[str, Any]:
        """What another meter needs to go on in the same epoch. All processes must call it."""
        self._read()
        seconds = time.perf_counter() - self.started
        return {
            "losses": self.losses,
            "norms": self.norms,
            "reported": self._reported,
            "images": self.images,
            "seconds": seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the meter that gave `state` was."""
        self.losses, self.norms = list(state["losses"]), list(state["norms"])
        self._reported = tuple(state["reported"])
        self.images = self._images_at_mark = state["images"]
        self.started -= state["seconds"]

    def _stop(self, what: str, value: float, where: str) -> None:
        raise UserError(
            f"the {what} became {value} in epoch {self.epoch}, {where}; checkpoints are as after the last good epoch; "
            "start again with a lower TRAIN.BASE_LR or a longer TRAIN.WARMUP_EPOCHS (or --amp bf16, if it was fp16)"
        )

    def summary(self) -> dict[str, float]:
        """Mean loss and gradient norm, images per second and seconds of the whole epoch."""
        seconds = time.perf_counter() - self.started
        return {
            "train_loss": sum(self.losses) / len(self.losses),
            "grad_norm": sum(self.norms) / max(1, len(self.norms)),
            "images_per_second": self.images / max(seconds, 1e-9),
            "seconds": seconds,
        }


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
