"""Predictions of an evaluation, image by image and class by class, as CSV."""

import copy
import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from classification.data import Loaders
from internimage.errors import UserError
from internimage.files import atomic_path

from .distributed import World, gather, run_on_main

__all__ = ["Predictions"]


class Predictions:
    """Records what models predict while `evaluate` runs on batches that pass through `watch`.

    Create it before the first batch is drawn: the loader then gives the index of each image instead of its label, which
    `watch` puts back.
    """

    def __init__(self, loaders: Loaders, models: Iterable[nn.Module | None]) -> None:
        dataset = loaders.val.dataset
        self.samples, self.columns, self.names = dataset.samples, loaders.eval_columns, loaders.class_names
        dataset.samples = copy.copy(dataset.samples)
        dataset.samples.labels = np.arange(len(dataset))
        for model in filter(None, models):
            model.register_forward_hook(lambda _, inputs, logits: self._keep(logits))

    def watch(self, batches: Iterable) -> Iterator[tuple]:
        """The batches, with labels; forgets the predictions of an earlier pass."""
        self.rows: list[tuple[int, int, float]] = []  # index, predicted class, probability
        labels = torch.from_numpy(self.samples.labels)
        for images, self.indices, *rest in batches:
            yield images, labels[self.indices], *rest

    def _keep(self, logits: Tensor) -> None:
        logits = logits.float().cpu()
        best = (logits if self.columns is None else logits[:, self.columns]).softmax(1).max(1)
        self.rows += zip(self.indices.tolist(), best.indices.tolist(), best.values.tolist())

    def write(self, path: Path, world: World, log: Callable[[str], None]) -> None:
        """Write `path`, a row for each image, and `<path>_classes.csv`, a row for each class; all processes call it.

        Raises:
            UserError: a file cannot be written.
        """
        rows = sorted(chain(*gather(self.rows)))
        run_on_main(world, lambda: self._write(path, rows))
        log(f"predictions of {len(rows)} images: {path}; accuracy of each class: {_of_classes(path)}")

    def _write(self, path: Path, rows: list[tuple[int, int, float]]) -> None:
        labels = [int(self.samples.labels[index]) for index, _, _ in rows]
        images = np.bincount(labels, minlength=len(self.names))
        right = np.bincount([label for label, row in zip(labels, rows) if label == row[1]], minlength=len(self.names))
        table = [
            (self.samples.name(index), self.names[label], self.names[best], f"{probability:.4f}")
            for label, (index, best, probability) in zip(labels, rows)
        ]
        counts = zip(self.names, images, right)
        classes = [(name, count, f"{100 * good / count:.2f}") for name, count, good in counts if count]
        _write_csv(path, ("image", "label", "predicted", "probability"), table)
        _write_csv(_of_classes(path), ("class", "images", "top1"), classes)


def _of_classes(path: Path) -> Path:
    return path.with_name(f"{path.stem}_classes.csv")


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # any bytes of a file's name
            with open(temporary, "w", **text) as file:
                csv.writer(file).writerows([header, *rows])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --predictions") from None
