"""Whether an exported file computes what PyTorch computes, and how fast it is beside it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from internimage.errors import UserError

from .exportable import Exportable
from .formats import Runtime

__all__ = ["Parity", "Time", "check_parity", "interleaved_times", "latency_table", "parity_table", "require_parity"]

_TOLERANCE, _HALF_TOLERANCE = 1e-4, 5e-2


class Parity(NamedTuple):
    """How far the results for one sample are apart."""

    shape: tuple[int, ...]
    name: str
    absolute: float
    relative: float


class Time(NamedTuple):
    """Medians in seconds; CPU time is that of all threads of the process."""

    cpu: float
    wall: float


def check_parity(exportable: Exportable, runtime: Runtime) -> list[Parity]:
    """Compare the runtime with PyTorch on every sample."""
    names = exportable.sample_names or [""] * len(exportable.samples)
    rows = []
    for images, name in zip(exportable.samples, names, strict=True):
        actual = tuple(torch.from_numpy(output) for output in runtime(images.numpy()))
        rows.append(Parity(tuple(images.shape), name, *exportable.compare(actual, exportable.reference(images))))
    return rows


def require_parity(rows: list[Parity], path: Path, *, half: bool, tolerance: float | None = None) -> None:
    """Rename the file to `*.failed` and raise `UserError` if a relative error exceeds the tolerance."""
    tolerance = tolerance or (_HALF_TOLERANCE if half else _TOLERANCE)
    worst = max(row.relative for row in rows)
    if not worst <= tolerance:
        failed = path.replace(path.with_name(f"{path.name}.failed"))
        raise UserError(f"the relative error {worst:.1e} exceeds {tolerance:.1e}; the file is now {failed}")


def interleaved_times(steps: dict[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Time]:
    """Median times of each step, taken in turn, so that a busy machine slows all of them alike."""
    for step in steps.values():
        for _ in range(warmup):
            step()
    samples: dict[str, list[Time]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            samples[name].append(Time(time.process_time() - cpu, time.perf_counter() - wall))
    return {name: Time(*map(statistics.median, zip(*times))) for name, times in samples.items()}


def parity_table(rows: list[Parity]) -> str:
    """The comparison in Markdown."""
    lines = ["| input | images | max abs error | max rel error |", "|---|---|--:|--:|"]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        lines.append(f"| {shape} | {row.name} | {row.absolute:.1e} | {row.relative:.1e} |")
    return "\n".join(lines)


def latency_table(times: dict[str, Time]) -> str:
    """The times in Markdown; ratios are to the first row."""
    first = next(iter(times.values()))
    lines = ["| runtime | CPU ms | wall ms | CPU ratio |", "|---|--:|--:|--:|"]
    for name, (cpu, wall) in times.items():
        lines.append(f"| {name} | {1e3 * cpu:.1f} | {1e3 * wall:.1f} | {cpu / first.cpu:.2f} |")
    return "\n".join(lines)
