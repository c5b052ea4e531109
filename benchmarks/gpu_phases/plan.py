"""Which phases run, in which order, and for how long."""

import time
from typing import NamedTuple

__all__ = ["PHASES", "Deadline", "Phase", "allot"]


class Phase(NamedTuple):
    """Seconds: `weight` is the share of what is left when it begins, `least` what it needs to be worth a start."""

    weight: float
    least: float


# In this order. Time that a phase leaves over goes to those after it; a compiler needs half a minute, so that the first
# may take more than it usually does. The models come last: they have use for any time that is left.
PHASES = {
    "build": Phase(150, 20),
    "tests": Phase(120, 20),
    "sanitizer": Phase(35, 12),
    "operator": Phase(100, 15),
    "ncu": Phase(30, 12),
    "model": Phase(140, 25),
}


def allot(name: str, following: list[str], remaining: float) -> float | None:
    """Return the seconds that a phase may take, or None if it is to be left out.

    Args:
        name: the phase.
        following: the phases after it.
        remaining: seconds until the end of the whole call.
    """
    share = remaining * PHASES[name].weight / sum(PHASES[other].weight for other in (name, *following))
    seconds = min(max(share, PHASES[name].least), remaining)
    return seconds if seconds >= PHASES[name].least else None


class Deadline:
    """A moment, in seconds since 1970 so that processes can share it."""

    def __init__(self, moment: float) -> None:
        self.moment = moment

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.moment - time.time()
