"""Order of the samples, and their distribution over processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from internimage.seeding import sample_seed

__all__ = ["EvalSampler", "TrainSampler"]


class TrainSampler(Sampler):
    """A new permutation of the whole set in each epoch, distributed to the processes batch by batch.

    Step i has the same samples with one process and batches of 2B as with two processes and batches of B. Items are
    `(epoch, index)`, so that persistent workers know the epoch. An incomplete last global batch is dropped.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps = length // (batch_size * world_size)
        self.epoch = self.first_step = 0

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Set the epoch and the first step of the next iteration."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first_step = self.epoch, self.first_step
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator)
        used = order[: self.steps * self.batch_size * self.world_size]
        mine = used.view(self.steps, self.world_size, self.batch_size)[:, self.rank]
        for index in mine[first_step:].flatten().tolist():
            yield epoch, index


class EvalSampler(Sampler):
    """Every sample exactly once over all processes, without padding, so that sums over processes are exact.

    Process r has the samples r, r + world_size, ...; with `sequential` a contiguous block, so that the concatenated
    outputs of all processes are in the order of the data set. The number of samples may differ by one.
    """

    def __init__(self, length: int, *, rank: int = 0, world_size: int = 1, sequential: bool = False) -> None:
        if sequential:
            start, stop = (length * r // world_size for r in (rank, rank + 1))
            self.indices = range(start, stop)
        else:
            self.indices = range(rank, length, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
