"""How often exported classifiers are right, beside PyTorch's: what int8 and float16 cost."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from internimage.errors import UserError

from .exportable import Exportable
from .formats import Runtime

__all__ = ["Accuracy", "accuracy_table", "measure_accuracy"]


class Accuracy(NamedTuple):
    """Share of images whose first class, and whose first five, hold the right one."""

    images: int
    top1: float
    top5: float


def measure_accuracy(classify: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """Accuracy of a classifier, images to logits, over batches of images `(N, 3, H, W)` and labels `(N,)`.

    Raises:
        UserError: no images.
    """
    count = first = five = 0
    for images, labels in batches:
        logits = classify(images)
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        count, first, five = count + len(labels), first + int(hits[:, 0].sum()), five + int(hits.sum())
    if not count:
        raise UserError("there are no labelled images to measure accuracy on")
    return Accuracy(count, first / count, five / count)


def accuracy_table(exportable: Exportable, runtimes: dict[str, tuple[Runtime, Path]]) -> str:
    """Accuracy of PyTorch and of the exported files on the labelled images, and the files' sizes, in Markdown.

    A file of fixed batch is given its images one batch at a time; the last ones are repeated to fill it.
    """
    fixed = None if exportable.dynamic else len(exportable.samples[0])
    steps: dict[str, tuple[Callable[[Tensor], Tensor], Path | None]] = {
        "PyTorch": (lambda images: exportable.reference(images)[0], None)
    }
    for name, (runtime, path) in runtimes.items():
        steps[name] = (lambda images, runtime=runtime: _logits(runtime, images, fixed)), path
    lines = ["| model | top-1 | top-5 | images | MB |", "|---|--:|--:|--:|--:|"]
    for name, (classify, path) in steps.items():
        images, top1, top5 = measure_accuracy(classify, exportable.labelled())
        size = f"{_bytes(path) / 1e6:.1f}" if path else ""
        lines.append(f"| {name} | {top1:.2%} | {top5:.2%} | {images} | {size} |")
    return "\n".join(lines)


def _logits(runtime: Runtime, images: Tensor, fixed: int | None) -> Tensor:
    results = []
    for chunk in images.split(fixed or len(images)):
        filler = chunk[-1:].expand((fixed or len(chunk)) - len(chunk), -1, -1, -1)
        results.append(torch.from_numpy(runtime(torch.cat([chunk, filler]).numpy())[0])[: len(chunk)])
    return torch.cat(results)


def _bytes(path: Path) -> int:
    """Size of a file and of those that hold its weights."""
    files = (path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files if file.exists())
