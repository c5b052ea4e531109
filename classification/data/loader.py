"""From encoded images to batches: decoding, seeded augmentation, handling of bad images."""

import io
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from internimage.errors import UserError
from internimage.images import decode_rgb
from internimage.preemption import ignore_in_worker
from internimage.seeding import isolated_randomness, sample_seed, seed_generators

from .samples import Samples

__all__ = ["ImageDataset", "ImageLoader"]

_MAX_BAD_IN_A_ROW = 50

Row = tuple  # (image (3, H, W) float32, label, *extra rows)


class BadImage(UserError):
    """An image that cannot be read or decoded; the message names the file."""


class ImageDataset(Dataset):
    """Decoded and transformed samples.

    Items are `(image (3, H, W) float32, label int, *extra)`. A key is an index or `(epoch, index)`; it and `seed`
    determine the item. The caller's random state does not change.

    Args:
        samples: images and labels.
        transform: from a PIL RGB image to a tensor.
        seed: of the augmentation.
        substitute: replace a skipped bad image by the next good sample (training), or leave it out (evaluation).
    """

    def __init__(
        self, samples: Samples, transform: Callable[[Image.Image], torch.Tensor], *, seed: int = 0, substitute: bool
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.substitute = substitute
        self.reading: Sequence[int] | None = None  # index of the image that each worker reads; -1: none

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        with isolated_randomness():
            return self._draw(*_epoch_and_index(key))

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[list[Row], list[str]]:
        """The good rows of a batch (none if no substitute was found), and a message for each bad image."""
        rows, bad = [], []
        # Once per batch: saving and restoring the three generators takes longer than seeding them.
        with isolated_randomness():
            for key in keys:
                row = self._draw_or_substitute(*_epoch_and_index(key), bad)
                if row is not None:
                    rows.append(row)
                elif self.substitute:
                    rows = []
                    break
        self._note(-1)
        return rows, bad

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None and self.reading is not None:
            self.reading[worker.id] = index

    def _draw_or_substitute(self, epoch: int, index: int, bad: list[str]) -> Row | None:
        for attempt in range(min(_MAX_BAD_IN_A_ROW, len(self)) if self.substitute else 1):
            try:
                # The seed of the missing sample: the substitute, which is also in this epoch itself, gets another
                # augmentation.
                return self._draw(epoch, (index + attempt) % len(self), seed_index=index)
            except BadImage as error:
                bad.append(str(error))
        return None

    def _draw(self, epoch: int, index: int, seed_index: int | None = None) -> Row:
        image = self._decode(index)
        seed_generators(sample_seed(self.seed, epoch, index if seed_index is None else seed_index))
        return self.transform(image), int(self.samples.labels[index]), *(extra[index] for extra in self.samples.extra)

    def _decode(self, index: int) -> Image.Image:
        self._note(index)
        try:
            return decode_rgb(io.BytesIO(self.samples.read(index)), self.samples.name(index))
        except Exception as error:  # Pillow raises many types: OSError, SyntaxError, struct.error, zlib.error ...
            reason = str(error).partition(" <_io")[0] or type(error).__name__
            raise BadImage(
                f"cannot read image {self.samples.name(index)}: {reason}; replace it, or pass --skip-bad-images"
            ) from None


def _epoch_and_index(key: int | tuple[int, int]) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (0, key)


def _collate(drawn: tuple[list[Row], list[str]]) -> tuple[tuple[torch.Tensor, ...] | None, list[str]]:
    rows, bad = drawn
    return (tuple(default_collate(rows)) if rows else None), bad


class ImageLoader(DataLoader):
    """A DataLoader whose batches are tuples of tensors, and which collects bad images in `bad_images`.

    Workers send messages about bad images with the batch. So the main process raises the `UserError` (an exception in a
    worker would arrive with a traceback), and the count includes all workers. The caller's random state is unchanged.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        sampler: Sampler,
        *,
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        skip_bad_images: bool,
        timeout: int,
    ) -> None:
        # Fork shares the lists of images, and images in memory, with the workers; the default of Python 3.14 would send
        # each worker a copy.
        context = "fork" if num_workers and sys.platform == "linux" else None
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            multiprocessing_context=context,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
            timeout=timeout if num_workers else 0,
            worker_init_fn=ignore_in_worker,
        )
        dataset.reading = multiprocessing.RawArray("q", [-1] * num_workers)
        self.skip_bad_images = skip_bad_images
        self.bad_images: dict[str, None] = {}  # messages, in the order of discovery

    def start_workers(self) -> None:
        """Fork the workers now. Workers forked in the middle of a run, beside busy threads, sometimes hang at start."""
        if self.num_workers:
            super().__iter__()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        try:
            for batch, bad in super().__iter__():
                if bad and not self.skip_bad_images:
                    raise UserError(bad[0])
                # Without the advice, which the user has followed.
                self.bad_images.update(dict.fromkeys(line.partition("; replace it")[0] for line in bad))
                if batch is not None:
                    yield batch
                elif self.dataset.substitute:
                    raise UserError(f"too many images in a row cannot be read; the last: {bad[-1]}")
        except UserError:
            # The garbage collector would close their queues first and then wait five seconds for each worker.
            self._end_workers()
            raise
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            workers = self._iterator._workers
            late = [
                f"process {worker.pid} is reading {self.dataset.samples.name(index)}"
                for worker, index in zip(workers, self.dataset.reading)
                if index >= 0
            ]
            who = "; ".join(late) or f"processes {', '.join(str(worker.pid) for worker in workers)}"
            self._end_workers()
            raise UserError(
                f"no batch from the workers for {self.timeout:g} seconds ({who}); check the file system and these "
                "processes, then start again, or increase --opts DATA.TIMEOUT SECONDS"
            ) from None

    def _end_workers(self) -> None:
        """Shut down the workers; kill those that do not exit within five seconds."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()
            worker.join(1)
            if worker.is_alive():  # blocked in the file system, where no signal ends it; do not wait for it at exit
                multiprocessing.process._children.discard(worker)
