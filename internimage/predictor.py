"""What the trained models of all tasks have in common for their users."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from .errors import UserError
from .results import Result
from .sources import Picture, iter_images

__all__ = ["Predictor", "choose_device"]


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; defaults to the GPU if there is one. Raises `UserError` if it cannot be used."""
    try:
        return torch.empty(1, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {str(name)!r} cannot be used ({reason}); give cpu, or cuda with a GPU") from None


class Predictor(ABC):
    """A trained model in evaluation mode that predicts from images; made by `internimage.load`.

    Attributes:
        model: the module itself.
        class_names: by label.
    """

    batch_size = 1

    def __init__(self, model: nn.Module, class_names: Sequence[str]) -> None:
        self.model, self.class_names = model, list(class_names)

    def predict(self, images: object, **options: object) -> list[Result]:
        """One result for each image or frame.

        Args:
            images: whatever `internimage.sources.iter_images` reads: paths, URLs, folders, patterns, videos, Pillow
                images, RGB arrays `(H, W, 3)`, tensors, lists of these.
            options: those of `stream`.

        Raises:
            UserError: a missing or damaged file, something that is not an image; tiles that cannot be used.
        """
        return list(self.stream(images, **options))

    def stream(
        self,
        images: object,
        *,
        threshold: float = 0.3,
        top: int = 5,
        tile: int | None = None,
        overlap: float = 0.2,
        on_error: Callable | None = None,
    ) -> Iterator[Result]:
        """`predict`, one result after another, for videos and large folders.

        Args:
            images: as in `predict`.
            threshold: lowest score of a detected object.
            top: number of classes of a classification.
            tile: look at an image in square tiles of this many pixels; not for classifiers.
            overlap: of neighbouring tiles, as a share of their side.
            on_error: as in `iter_images`.
        """
        self._check_tiles(tile, overlap)
        self.tiles = tile and (tile, overlap)
        pictures = iter_images(images, on_error)
        while batch := list(islice(pictures, self.batch_size)):
            with torch.inference_mode():
                results = self._predict(batch, threshold, top)
            yield from results

    def _check_tiles(self, tile: int | None, overlap: float) -> None:
        if tile is not None:
            raise UserError("a classifier looks at whole images; omit the tile")

    @abstractmethod
    def to_rgb(self, image: torch.Tensor) -> torch.Tensor:
        """The input of the model, normalised `(C, H, W)`, as `(H, W, 3)` with values 0 to 1."""

    @abstractmethod
    def _predict(self, pictures: list[Picture], threshold: float, top: int) -> list[Result]:
        """The results of at most `batch_size` images."""
