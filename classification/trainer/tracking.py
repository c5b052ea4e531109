"""What a run tells: lines and a progress bar on the terminal, log.txt, history.jsonl and TensorBoard.

Only rank 0 writes. `history.jsonl` has one JSON object per epoch, from which a training curve can be drawn. On
resuming, the figures of epochs that run again are dropped, so that no epoch is there twice.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from internimage.errors import UserError

from .distributed import World, sum_over_processes

__all__ = ["EpochMeter", "Tracker", "duration", "prepare_folder"]

T = TypeVar("T")


def prepare_folder(folder: Path, config_yaml: str) -> None:
    """Make a run's output folder and note the resolved configuration in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config_yaml)
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}; change --output") from None


class Tracker:
    """The voice of a run. On other ranks than 0 every method does nothing.

    Args:
        folder: where log.txt, history.jsonl and the TensorBoard files go; None to print only.
        world: this process among the others.
    """

    def __init__(self, folder: Path | None, world: World) -> None:
        self.active = world.is_main
        self.folder = folder if self.active else None
        self.on_terminal = self.active and sys.stderr.isatty()
        self.writer = None

    def begin(self, epoch: int, step: int) -> None:
        """Open history.jsonl and TensorBoard for a run whose next epoch and update have these numbers, from 0.

        Later figures of a run that was interrupted are dropped.
        """
        if self.folder is not None:
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

    def steps(self, batches: Iterable[T], *, total: int, label: str) -> Iterator[T]:
        """Iterate with a progress bar on a terminal; elsewhere `note` prints lines."""
        if not self.on_terminal:
            yield from batches
            return
        with tqdm(batches, total=total, desc=label, dynamic_ncols=True, leave=False) as bar:
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
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def epoch(self, record: dict[str, float]) -> None:
        """Append one epoch's figures to history.jsonl."""
        if self.folder is not None:
            with open(self.folder / "history.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
            self.writer.flush()

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.writer is not None:
            self.writer.close()

    def _append_log(self, text: str) -> None:
        if self.folder is not None:
            with open(self.folder / "log.txt", "a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _drop_history_from(self, epoch: int) -> None:
        path = self.folder / "history.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the run was killed while it wrote this line
                continue
            if record["epoch"] < epoch:
                kept.append(line + "\n")
        new = path.with_suffix(".tmp")
        new.write_text("".join(kept))
        os.replace(new, path)


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
        self.step = 0
        self.images = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.started = self._mark = time.perf_counter()
        self._loss_tensors: list[torch.Tensor] = []
        self._norm_tensors: list[torch.Tensor] = []
        self._images_at_mark = 0

    def add(self, loss: torch.Tensor, images: int) -> None:
        """One forward pass: its mean loss (scalar) and how many images this process saw."""
        self._loss_tensors.append(loss.detach().float())
        self.images += images * self.world.size
        self.step += 1

    def add_norm(self, norm: torch.Tensor) -> None:
        """One update: the gradient norm before clipping (scalar)."""
        self._norm_tensors.append(norm.detach().float())

    def flush(self) -> dict[str, float]:
        """Mean loss and gradient norm, and images per second, since the last flush.

        Raises:
            UserError: on every process, if the loss of any process or the gradient was not finite.
        """
        losses = sum_over_processes(self.world, torch.stack(self._loss_tensors)).div(self.world.size).tolist()
        norms = torch.stack(self._norm_tensors).tolist() if self._norm_tensors else []
        self._loss_tensors, self._norm_tensors = [], []
        for step, loss in enumerate(losses, start=len(self.losses)):
            if not math.isfinite(loss):
                self._stop("loss", loss, f"step {step}")
        for update, norm in enumerate(norms, start=len(self.norms)):
            if not math.isfinite(norm) and not self.skips_overflow:
                self._stop("gradient norm", norm, f"update {update}")
        norms = [norm for norm in norms if math.isfinite(norm)]
        self.losses += losses
        self.norms += norms
        now = time.perf_counter()
        rate = (self.images - self._images_at_mark) / max(now - self._mark, 1e-9)
        self._mark, self._images_at_mark = now, self.images
        window = {"loss": sum(losses) / len(losses), "images_per_second": rate}
        return window | ({"grad_norm": sum(norms) / len(norms)} if norms else {})

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
