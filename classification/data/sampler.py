"""Which process sees which sample when."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from internimage.seeding import sample_seed

__all__ = ["EvalSampler", "TrainSampler"]


class TrainSampler(Sampler):
    """Each epoch a new permutation of the whole set, dealt to the processes batch by batch.

    Step i uses the same samples whether one process takes batches of 2B or two processes take batches of B. Items are
    `(epoch, index)`: the epoch travels with the index, so persistent workers need not be told about it. What does not
    fill a global batch is left out (of this epoch; the next permutation is another one).
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps = length // (batch_size * world_size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator)
        used = order[: self.steps * self.batch_size * self.world_size]
        mine = used.view(self.steps, self.world_size, self.batch_size)[:, self.rank]
        for index in mine.flatten().tolist():
            yield epoch, index


class EvalSampler(Sampler):
    """Every sample exactly once over all processes, without padding: counts that are summed stay honest.

    Process r takes samples r, r + world_size, ...; with `sequential` a contiguous block, so that the outputs of all
    processes, put one after the other, are in the order of the data set. Processes may differ by one sample.
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
