"""Images to batches: decoding, seeded augmentation, and bad images."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from internimage.errors import UserError
from internimage.images import decode_rgb
from internimage.seeding import isolated_randomness, sample_seed, seed_generators

from .samples import Samples

__all__ = ["ImageDataset", "ImageLoader"]

# So many bad images in a row are no accident.
_MAX_BAD_IN_A_ROW = 50

Row = tuple  # (image (3, H, W) float32, label, *extra rows)


class BadImage(UserError):
    """An image that cannot be read or decoded; the message names the file."""


class ImageDataset(Dataset):
    """Decoded and transformed samples.

    Items are `(image (3, H, W) float32, label int, *extra)`. A key is an index or `(epoch, index)`; the item is a pure
    function of key and `seed`, and drawing it leaves the caller's random state alone.

    Args:
        samples: images and labels.
        transform: from a PIL RGB image to a tensor.
        seed: of the augmentation.
        substitute: what a skipped bad image becomes: the next good sample (training), or nothing (evaluation).
    """

    def __init__(
        self, samples: Samples, transform: Callable[[Image.Image], torch.Tensor], *, seed: int = 0, substitute: bool
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed
        self.substitute = substitute

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> Row:
        with isolated_randomness():
            return self._draw(*_epoch_and_index(key))

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[list[Row], list[str]]:
        """The good rows of a batch (none if substitutes ran out), and a message for each bad image met on the way."""
        rows, bad = [], []
        # Once per batch: to save and restore the three generators takes longer than to seed them.
        with isolated_randomness():
            for key in keys:
                row = self._draw_or_substitute(*_epoch_and_index(key), bad)
                if row is not None:
                    rows.append(row)
                elif self.substitute:
                    return [], bad
        return rows, bad

    def _draw_or_substitute(self, epoch: int, index: int, bad: list[str]) -> Row | None:
        for attempt in range(min(_MAX_BAD_IN_A_ROW, len(self)) if self.substitute else 1):
            try:
                # The seed is that of the missing sample, so that its substitute, which is in this epoch once already,
                # is augmented differently.
                return self._draw(epoch, (index + attempt) % len(self), seed_index=index)
            except BadImage as error:
                bad.append(str(error))
        return None

    def _draw(self, epoch: int, index: int, seed_index: int | None = None) -> Row:
        image = self._decode(index)
        seed_generators(sample_seed(self.seed, epoch, index if seed_index is None else seed_index))
        return self.transform(image), int(self.samples.labels[index]), *(extra[index] for extra in self.samples.extra)

    def _decode(self, index: int) -> Image.Image:
        try:
            return decode_rgb(io.BytesIO(self.samples.read(index)))
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
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
    """A DataLoader whose batches are tuples of tensors, and which knows the bad images that it met.

    Workers send bad images along with the batch as text. So the error is raised here, in the main process, as a
    `UserError` of one line (an exception in a worker would arrive wrapped in a traceback), and the count covers all
    workers. Nothing is drawn from the caller's random generators.
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
    ) -> None:
        # Fork shares the lists of images, and images kept in memory, with the workers; Python 3.14's default would
        # send each worker a copy.
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
        )
        self.skip_bad_images = skip_bad_images
        self.bad_images: dict[str, None] = {}  # messages, in the order of discovery

    def start_workers(self) -> None:
        """Fork the workers now. Forked in the middle of a run, beside busy threads, one in dozens hung at its start."""
        if self.num_workers:
            super().__iter__()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        try:
            for batch, bad in super().__iter__():
                if bad and not self.skip_bad_images:
                    raise UserError(bad[0])
                # Without the advice, which is what the user has done.
                self.bad_images.update(dict.fromkeys(line.partition("; replace it")[0] for line in bad))
                if batch is not None:
                    yield batch
                elif self.dataset.substitute:
                    raise UserError(f"too many images in a row cannot be read; the last: {bad[-1]}")
        except UserError:
            # Ends the workers now. Left to the garbage collector, which closes their queues first, each would be
            # waited for in vain for five seconds.
            self._iterator = None
            raise
