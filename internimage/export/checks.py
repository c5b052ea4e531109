"""Whether an exported file computes what PyTorch computes, and how fast it is beside it."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from internimage.errors import UserError

from .exportable import Exportable, Outputs
from .formats import Runtime

__all__ = [
    "Parity",
    "Time",
    "check_parity",
    "compare_samples",
    "interleaved_times",
    "latency_table",
    "limits",
    "match_warning",
    "own_response",
    "parity_table",
    "require_parity",
    "worst_failure",
]

_LARGEST_JUMP = 1e-2  # a model that moves more by itself cannot be checked
_JUMPS = 10.0  # factor between a model's jumps at ties: those of one random DINO-T were 2e-5 to 5e-3


def limits(tolerance: float | None, *, half: bool = False) -> tuple[float, float]:
    """The largest relative error allowed, and the one beyond which `own_response` is asked for.

    A tolerance that the user gave is taken at its word: then nothing is asked.
    """
    if tolerance:
        return tolerance, math.inf
    default = 5e-2 if half else 1e-4
    return default, default


class Parity(NamedTuple):
    """How far the results for one sample are apart."""

    shape: tuple[int, ...]
    name: str
    absolute: float
    relative: float
    matched: tuple[int, int] | None = None  # objects compared, of how many
    own: float = 0.0  # see `own_response`; 0 where it was not asked for

    def passes(self, tolerance: float) -> bool:
        """Whether the results are close enough."""
        return self.relative <= max(tolerance, min(_JUMPS * self.own, _LARGEST_JUMP))


class Time(NamedTuple):
    """Medians in seconds; CPU time is that of all threads of the process."""

    cpu: float
    wall: float


def check_parity(exportable: Exportable, runtime: Runtime, limit: float = math.inf) -> list[Parity]:
    """Compare the runtime with PyTorch on every sample; beyond `limit` ask for `own_response` too."""
    return compare_samples(
        exportable, lambda images, _: tuple(torch.from_numpy(output) for output in runtime(images.numpy())), limit
    )


def compare_samples(
    exportable: Exportable, other: Callable[[Tensor, Outputs], Outputs], limit: float = math.inf
) -> list[Parity]:
    """As `check_parity` with any function of the images and of what PyTorch makes of them."""
    names = exportable.sample_names or [""] * len(exportable.samples)
    rows = []
    for images, name in zip(exportable.samples, names, strict=True):
        expected = exportable.reference(images)
        actual = other(images, expected)
        absolute, relative = exportable.compare(actual, expected)
        matched = exportable.matched(actual, expected) if exportable.matched else None
        own = 0.0 if relative <= limit else own_response(exportable, images, expected, relative / _JUMPS)
        rows.append(Parity(tuple(images.shape), name, absolute, relative, matched, own))
    return rows


def worst_failure(rows: list[Parity], tolerance: float) -> float | None:
    """The largest relative error among the samples that do not pass, if any."""
    return max((row.relative for row in rows if not row.passes(tolerance)), default=None)


def require_parity(rows: list[Parity], path: Path, tolerance: float) -> None:
    """Rename the file to `*.failed` and raise `UserError` if a relative error exceeds the tolerance."""
    worst = worst_failure(rows, tolerance)
    if worst is not None:
        failed = path.replace(path.with_name(f"{path.name}.failed"))
        raise UserError(
            f"the relative error {worst:.1e} exceeds {tolerance:.1e}; the file is now {failed} "
            "(a larger error can be allowed: --tolerance)"
        )


def own_response(
    exportable: Exportable, images: Tensor, expected: Outputs, enough: float, noise: float = 1e-6, draws: int = 4
) -> float:
    """The largest relative change of PyTorch's own results when pixels change by up to a millionth; ends at `enough`.

    That is what computing in another order does to them. Models that choose by rank (DINO its queries) jump where two
    scores nearly tie, and then a file may be on the other side of the jump without being wrong.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(draws):
        changed = images * torch.empty_like(images).uniform_(1 - noise, 1 + noise, generator=generator)
        worst = max(worst, exportable.compare(exportable.reference(changed), expected)[1])
        if worst >= enough:
            break
    return worst if math.isfinite(worst) else 0.0


def match_warning(rows: list[Parity]) -> str | None:
    """What to tell the user if small errors prove little, since there was little to compare."""
    counts = [row.matched for row in rows if row.matched]
    matched, total = map(sum, zip(*counts)) if counts else (1, 1)
    if matched >= 0.9 * total > 0:
        return None
    found = f"{matched} of {total} objects had a partner" if total else "PyTorch found no object in the sample images"
    return f"WARNING: {found}, so the errors prove little; give --images in which the model finds something"


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
    objects = any(row.matched for row in rows)
    lines = [
        f"| input | images | max abs error | max rel error |{' objects compared |' * objects}",
        f"|---|---|--:|--:|{'--:|' * objects}",
    ]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        counts = f" {row.matched[0]} of {row.matched[1]} |" if row.matched else ""
        lines.append(f"| {shape} | {row.name} | {row.absolute:.1e} | {row.relative:.1e} |{counts}")
    jumps = [row for row in rows if row.own]
    if jumps:
        own = ", ".join(f"{row.own:.1e}" for row in jumps)
        lines += [
            "",
            f"Where the error is large, PyTorch's own results change by {own} if pixels change by a millionth.",
        ]
    return "\n".join(lines)


def latency_table(times: dict[str, Time]) -> str:
    """The times in Markdown; ratios are to the first row."""
    first = next(iter(times.values()))
    lines = ["| runtime | CPU ms | wall ms | CPU ratio |", "|---|--:|--:|--:|"]
    for name, (cpu, wall) in times.items():
        lines.append(f"| {name} | {1e3 * cpu:.1f} | {1e3 * wall:.1f} | {cpu / first.cpu:.2f} |")
    return "\n".join(lines)
