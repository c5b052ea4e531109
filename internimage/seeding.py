"""Seeds per sample, so that random augmentation does not depend on the number of workers and processes.

timm's and torchvision's augmentations draw from three global generators (`random`, numpy, torch). All three are seeded
before each sample with a hash of (seed, epoch, sample index), which is also exact after a resume. It takes about 10
microseconds per sample, because only torch's CPU generator is seeded: `torch.manual_seed` takes ten times as long.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["isolated_randomness", "sample_seed", "seed_generators"]

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """The finalizer of SplitMix64 (Steele et al., 2014): every input bit affects every output bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def sample_seed(*numbers: int) -> int:
    """A 63-bit seed for a tuple of numbers such as (seed, epoch, sample index)."""
    state = 0
    for number in numbers:
        state = _mix(state ^ number)
    return state >> 1


def seed_generators(seed: int) -> None:
    """Seed the global CPU generators of `random`, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from the global generator)
    torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Restore the states of the three global CPU generators at exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
