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
        """Write `path`, a row for each image, and `*_classes.csv`, a row for each class; all processes call it.

        Raises:
            UserError: a file cannot be written.
        """
        images, classes = [("image", "label", "predicted", "probability")], {}
        for index, best, probability in sorted(chain(*gather(self.rows))):
            label = int(self.samples.labels[index])
            images.append((self.samples.name(index), self.names[label], self.names[best], f"{probability:.4f}"))
            classes.setdefault(self.names[label], []).append(best == label)
        means = [(name, len(hits), f"{100 * sum(hits) / len(hits):.2f}") for name, hits in classes.items()]
        beside = path.with_name(f"{path.stem}_classes.csv")

        def write() -> None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                for target, rows in ((path, images), (beside, [("class", "images", "top1"), *means])):
                    with open(target, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                        csv.writer(file).writerows(rows)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}; choose another --predictions") from None

        run_on_main(world, write)
        log(f"wrote {path} ({len(images) - 1} images) and {beside} (accuracy of each class)")
