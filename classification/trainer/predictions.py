"""What the last evaluation predicted, image by image, as a report and as CSV."""

import copy
import csv
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classification.data import Loaders
from internimage.errors import UserError
from internimage.images import decode_rgb
from internimage.report import Part, curves, evaluation, write_report

from .distributed import World, gather, run_on_main
from .tracking import Tracker, read_history

__all__ = ["Predictions"]

_PICTURES, _COLUMNS = 50, 10
_ACCURACIES = {"top1": "top-1", "top1_ema": "top-1, averaged weights", "top5": "top-5"}


class Predictions:
    """Records what `evaluate` predicts for batches that pass through `watch`.

    Create it before the first batch is drawn: the loader then gives the index of each image instead of its label, which
    `watch` puts back.
    """

    def __init__(self, loaders: Loaders) -> None:
        dataset = loaders.val.dataset
        self.samples, self.names = dataset.samples, loaders.class_names
        dataset.samples = copy.copy(dataset.samples)
        dataset.samples.labels = np.arange(len(dataset))
        self._parts: list[tuple[Tensor, ...]] = []

    def watch(self, batches: Iterable) -> Iterator[tuple]:
        """The batches, with labels; forgets the predictions of an earlier pass."""
        self._parts = []
        labels = torch.from_numpy(self.samples.labels)
        for images, self._indices, *rest in batches:
            yield images, labels[self._indices], *rest

    def keep(self, logits: Tensor) -> None:
        """Record the logits `(N, classes)` of the last batch of `watch`."""
        best = logits.softmax(1).max(1)
        self._parts.append((self._indices[: len(logits)], best.indices, best.values))

    def collect(self) -> np.ndarray:
        """Index, label, predicted label and probability of every image, `(n, 4)`, by index; all processes call it."""
        columns = [torch.cat(column).double().cpu().numpy() for column in zip(*self._parts)]
        index, *predicted = np.concatenate(gather(np.reshape(columns, (3, -1))), 1)
        rows = np.stack([index, self.samples.labels[index.astype(int)], *predicted], 1)
        return rows[index.argsort()]

    def write(self, path: Path, world: World, log: Callable[[str], None]) -> None:
        """Write `path`, a row for each image, and the folder `*_report`; all processes call it.

        Raises:
            UserError: `path` cannot be written.
        """
        rows = self.collect()

        def write() -> None:
            table = [("image", "label", "predicted", "probability")]
            for index, label, best in rows[:, :3].astype(int):
                table.append((self.samples.name(index), self.names[label], self.names[best]))
            table[1:] = [(*row, f"{probability:.4f}") for row, probability in zip(table[1:], rows[:, 3])]
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                    csv.writer(file).writerows(table)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}; choose another --predictions") from None
            log(f"wrote {path} ({len(rows)} images)")
            write_report(path.with_name(f"{path.stem}_report"), lambda: self._evaluation(rows, "validation"), log)

        run_on_main(world, write)

    def report(self, folder: Path, world: World, what: str, tracker: Tracker, step: int) -> None:
        """Write the curves of a run and the last evaluation, if there was one; all processes call it."""
        rows = self.collect()

        def parts() -> Iterator[Part]:
            history = read_history(folder / "history.jsonl", tracker.log)
            records = [{**record, "epoch": record["epoch"] + 1} for record in history]
            losses = {"train_loss": "training (augmented images)", "val_loss": "validation"}
            yield curves(records, "epoch", {"cross entropy": losses, "accuracy (%)": _ACCURACIES})
            yield from self._evaluation(rows, what)

        if world.is_main and len(rows):
            show = functools.partial(tracker.image, step)
            write_report(folder / "report", parts, tracker.log, show)

    def _evaluation(self, rows: np.ndarray, what: str) -> Iterator[Part]:
        tiles = []
        for index, label, best, probability in rows[:: -(-len(rows) // _PICTURES)].tolist():
            image = decode_rgb(io.BytesIO(self.samples.read(int(index))))
            image.thumbnail((256, 256))
            wrong = "" if label == best else f"\nis {self.names[int(label)]}"
            tiles.append((image, f"{probability:.0%} {self.names[int(best)]}{wrong}", label == best))
        units = np.insert(rows[:, 1:], 3, 1, axis=1)
        return evaluation(what, "images", self.names, units, tiles, _COLUMNS)
