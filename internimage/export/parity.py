"""Compare the results and the speed of an exported file with PyTorch."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from internimage.errors import UserError

from .formats import Runtime
from .spec import Check, Exportable, Outputs

__all__ = [
    "Parity",
    "Time",
    "check_parity",
    "default_tolerance",
    "interleaved_times",
    "latency_table",
    "match_warning",
    "parity_table",
    "require_parity",
]

_LARGEST_JUMP = 1e-2  # a model with larger jumps of its own cannot be checked
_JUMPS = 10.0  # factor between a model's jumps at ties: those of one random DINO-T were 2e-5 to 5e-3


class Parity(NamedTuple):
    """The errors for one sample."""

    shape: tuple[int, ...]
    absolute: float
    relative: float
    matched: tuple[int, int] | None = None  # objects compared, and all objects
    own: float = 0.0  # see `_own_response`; 0 if it was not measured
    failure: str = ""  # why the runtime gave no result

    def passes(self, tolerance: float) -> bool:
        """Whether the results are close enough."""
        return self.relative <= max(tolerance, min(_JUMPS * self.own, _LARGEST_JUMP))


class Time(NamedTuple):
    """Medians in seconds; CPU time is that of all threads of the process."""

    cpu: float
    wall: float


def default_tolerance(half: bool) -> float:
    """The largest relative error allowed by default."""
    return 5e-2 if half else 1e-4


def check_parity(exportable: Exportable, check: Check, runtime: Runtime, limit: float = math.inf) -> list[Parity]:
    """Compare the runtime with PyTorch on every sample; beyond `limit`, measure PyTorch's own jumps too."""
    rows = []
    for images in check.samples:
        expected = exportable.reference(images)
        try:
            actual = tuple(torch.from_numpy(output) for output in runtime(images.numpy()))
        except Exception as error:  # the runtimes have no common base class of their errors
            reason = str(error).strip().splitlines() or [type(error).__name__]
            rows.append(Parity(tuple(images.shape), math.inf, math.inf, failure=reason[0]))
            continue
        absolute, relative = check.error(actual, expected)
        matched = check.matched(actual, expected) if check.matched else None
        own = 0.0 if relative <= limit else _own_response(exportable, check, images, expected, relative / _JUMPS)
        rows.append(Parity(tuple(images.shape), absolute, relative, matched, own))
    return rows


def require_parity(rows: list[Parity], path: Path, tolerance: float) -> None:
    """Rename the file to `*.failed` and raise `UserError` if it does not run or an error exceeds the tolerance."""
    worst = max((row for row in rows if not row.passes(tolerance)), key=lambda row: row.relative, default=None)
    if worst is not None:
        failed = path.replace(path.with_name(f"{path.name}.failed"))
        if worst.failure:
            shape = " x ".join(map(str, worst.shape))
            raise UserError(f"the file does not run on images {shape} ({worst.failure}); it is now {failed}")
        raise UserError(
            f"the results differ from PyTorch's: the relative error {worst.relative:.1e} exceeds {tolerance:.1e}; the "
            f"file is now {failed} (--tolerance allows a larger error)"
        )


def _own_response(
    exportable: Exportable, check: Check, images: Tensor, expected: Outputs, enough: float, draws: int = 4
) -> float:
    """The largest relative change of PyTorch's own results when pixels change by up to a millionth; stops at `enough`.

    Computing in another order has the same effect. Models that choose by rank, as DINO chooses its queries, jump where
    two scores nearly tie; a file may then be on the other side of the jump without being wrong.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(draws):
        changed = images * torch.empty_like(images).uniform_(1 - 1e-6, 1 + 1e-6, generator=generator)
        worst = max(worst, check.error(exportable.reference(changed), expected)[1])
        if worst >= enough:
            break
    return worst if math.isfinite(worst) else 0.0


def match_warning(rows: list[Parity]) -> str | None:
    """A warning if small errors prove little because there was little to compare; otherwise None."""
    counts = [row.matched for row in rows if row.matched]
    matched, total = map(sum, zip(*counts)) if counts else (1, 1)
    if matched >= 0.9 * total > 0:
        return None
    found = f"{matched} of {total} objects were matched" if total else "PyTorch found no object in the sample images"
    return f"WARNING: {found}, so the errors prove little; give --images in which the model finds something"


def interleaved_times(steps: dict[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Time]:
    """Median times of the steps, run in turn, so that a busy machine slows all of them equally."""
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


def parity_table(rows: list[Parity], source: str = "") -> str:
    """The comparison in Markdown; `source` says what the images show."""
    objects = any(row.matched for row in rows)
    lines = [
        f"| input | images | max abs error | max rel error |{' objects compared |' * objects}",
        f"|---|---|--:|--:|{'--:|' * objects}",
    ]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        counts = f" {row.matched[0]} of {row.matched[1]} |" if row.matched else ""
        lines.append(f"| {shape} | {source} | {row.absolute:.1e} | {row.relative:.1e} |{counts}")
    if own := ", ".join(f"{row.own:.1e}" for row in rows if row.own):
        moved = f"PyTorch's own results change by {own} if pixels change by a millionth"
        lines += ["", f"Where the error is large, {moved}."]
    return "\n".join(lines)


def latency_table(times: dict[str, Time]) -> str:
    """The times in Markdown; ratios are to the first row."""
    first = next(iter(times.values()))
    lines = ["| runtime | CPU ms | wall ms | CPU ratio |", "|---|--:|--:|--:|"]
    for name, (cpu, wall) in times.items():
        lines.append(f"| {name} | {1e3 * cpu:.1f} | {1e3 * wall:.1f} | {cpu / first.cpu:.2f} |")
    return "\n".join(lines)
