"""Training that stops at any step and resumes with exactly the same result.

mmengine resumes at the end of an epoch, with new random numbers, and an iteration-based training reads all earlier data
again. Here no random state needs saving: every sample and every step has its own seed, computed from the run's seed,
the process, and the step. So a resumed training gives the same weights, with any number of worker processes.
(Transforms that keep earlier samples, such as `CachedMosaic`, are an exception.)
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from mmengine.dist import get_rank
from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Dataset, Sampler

from ..seeding import sample_seed, seed_generators

__all__ = ["LOOPS", "EpochLoop", "ResumableBatches", "ResumableEarlyStopping", "end_workers"]


class ResumableBatches(Sampler):
    """A batch sampler that starts at any batch and gives every sample a seed: batches of (seed, index) pairs.

    Args:
        sampler: indices of this process's samples.
        batch_size: samples in a batch.
        inner: configuration of the batch sampler that makes the batches; defaults to consecutive indices.
        drop_last: drop a smaller last batch.
        endless: start again when the sampler ends, for iteration-based training.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        *,
        inner: dict | None = None,
        drop_last: bool = False,
        endless: bool = False,
    ) -> None:
        self.sampler, self.batch_size, self.drop_last, self.endless = sampler, batch_size, drop_last, endless
        inner = inner or {"type": BatchSampler, "drop_last": drop_last}
        self._inner = DATA_SAMPLERS.build(inner, default_args={"sampler": sampler, "batch_size": batch_size})
        self._seed: int | None = None
        self._epoch = self._start = 0

    def open(self, seed: int, epoch: int, start: int) -> None:
        """Make the next iterator start at batch `start` of an epoch. Before the first call there are no batches."""
        self._seed, self._epoch, self._start = seed, epoch, start
        if hasattr(self.sampler, "seed"):
            self.sampler.seed = seed  # the resumed run's

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = 0
        for epoch in itertools.count(self._epoch) if self._seed is not None else ():
            first = number
            for batch in self._inner:
                if number >= self._start:
                    where = self._seed, get_rank(), epoch, number
                    yield [(sample_seed(*where, place), index) for place, index in enumerate(batch)]
                number += 1
            if not self.endless or number == first:
                break
            self.sampler.set_epoch(epoch + 1)


def _fetch(dataset: Dataset, batch: Sequence[tuple[int, int]]) -> list:
    samples = []
    for seed, index in batch:
        seed_generators(seed)
        samples.append(dataset[index])
    return samples


class _Loop:
    """What both loops add to mmengine's: seeds for samples and steps."""

    def __init__(self, runner: Runner, dataloader: dict, **options) -> None:
        loader = runner.build_dataloader(dataloader, seed=runner.shared_seed)
        # torch's loaders call this instead of indexing, with a batch of the sampler. Set before workers start.
        loader.dataset.__getitems__ = functools.partial(_fetch, loader.dataset)
        super().__init__(runner, loader, **options)

    def _open(self, epoch: int, start: int) -> None:
        self.dataloader.batch_sampler.open(self.runner.shared_seed, epoch, start)

    def _step(self, *args: object) -> None:
        seed = sample_seed(self.runner.shared_seed, get_rank(), self._iter)
        seed_generators(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)
        super().run_iter(*args)

    def _is_due(self, done: int, end: int) -> bool:
        self._decide_current_val_interval()
        return done >= self.val_begin and (done % self.val_interval == 0 or done == end)


class EpochLoop(_Loop, EpochBasedTrainLoop):
    """mmengine's epoch-based loop, which can start in mid-epoch."""

    by_iter = False
    batch = 0  # the next one of this epoch

    def run_epoch(self) -> None:
        """Run the rest of the epoch."""
        self._open(self._epoch, self.batch)
        super().run_epoch()
        self.batch = 0

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Run one step. `idx` counts from where this run started the epoch."""
        self._step(self.batch, data_batch)
        self.batch += 1
        self.runner.stop_if_asked()

    def validation_is_due(self) -> bool:
        """Whether mmengine validates at this step."""
        return self.batch == 0 and self._is_due(self._epoch, self._max_epochs)


class IterLoop(_Loop, IterBasedTrainLoop):
    """mmengine's iteration-based loop, which does not read the data of earlier steps again."""

    by_iter = True

    def run(self) -> torch.nn.Module:
        """Train from the current iteration."""
        self._open(0, self._iter)
        # mmengine skips as many batches as there were steps.
        self.dataloader_iterator = itertools.chain(itertools.repeat(None, self._iter), self.dataloader)
        return super().run()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Run one step."""
        self._step(data_batch)
        self.runner.stop_if_asked()

    def validation_is_due(self) -> bool:
        """Whether mmengine validates at this step."""
        return self._is_due(self._iter, self._max_iters)


LOOPS = {"EpochBasedTrainLoop": EpochLoop, "IterBasedTrainLoop": IterLoop}


class ResumableEarlyStopping(EarlyStoppingHook):
    """mmengine's hook, whose best score and count of validations without a better one are saved with the training."""

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Compare a validation's metrics with those before it, also with those before the training was resumed."""
        info = runner.message_hub.runtime_info
        self.best_score, self.wait_count = info.get("early_stopping") or (self.best_score, self.wait_count)
        super().after_val_epoch(runner, metrics)
        runner.message_hub.update_info("early_stopping", [float(self.best_score), self.wait_count])


def end_workers(*loops: BaseLoop | dict | None) -> None:
    """End the worker processes of these loops' loaders now.

    Left to the garbage collector, which frees their queues before their iterator, each would be waited for 5 s.
    """
    for loop in loops:
        if isinstance(loop, BaseLoop):
            loop.dataloader_iterator = loop.dataloader._iterator = None
