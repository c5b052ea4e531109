"""The images of an exported detector or segmentor: their preprocessing, and those of its check."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from internimage.errors import UserError
from internimage.images import read_image
from internimage.sources import image_files

__all__ = ["default_size", "make_samples", "preprocessing", "read_pictures"]

# Steps of test pipelines that do not change the picture.
_NEUTRAL = ("Load", "Pack", "ToTensor", "ImageToTensor", "Collect")


def preprocessing(config: Config) -> dict[str, object]:
    """The metadata of a configuration's test pipeline. Raises `UserError` for a step not in `predict_onnx.py`."""
    source = config.model.data_preprocessor
    rule, scale, multiple = "keep size", None, 1
    for step in config.test_dataloader.dataset.pipeline:
        kind = step["type"]
        if kind == "Resize":
            rule, scale = "keep ratio" if step.get("keep_ratio") else "stretch", list(step["scale"])
        elif kind == "ResizeToMultiple":
            multiple = step.get("size_divisor", 32)
        elif not kind.startswith(_NEUTRAL):
            raise UserError(f"cannot export the step {kind} of the test pipeline; supported: Resize, ResizeToMultiple")
    end = "stretch to multiple"
    if divisor := source.get("pad_size_divisor", 1 if "pad_size_divisor" in source else None):
        multiple, end = divisor, "pad to multiple"
    if rule == "stretch" and any(length % multiple for length in scale):
        raise UserError(
            f"cannot export Resize to {scale} without keep_ratio: the sides must be multiples of {multiple}"
        )
    return {
        "mean": [value / 255 for value in source.mean],
        "std": [value / 255 for value in source.std],
        "channels": "RGB" if source.get("bgr_to_rgb") else "BGR",
        "resize": rule if rule == "stretch" else f"{rule}, {end}",
        "multiple": multiple,
        "interpolation": "opencv bilinear",
        **({"scale": scale} if rule == "keep ratio" else {"size": scale[::-1]} if scale else {}),
    }


def default_size(meta: Mapping, config: Config) -> tuple[int, int]:
    """Height and width of a 4 to 3 photograph after resizing."""
    if "size" in meta:
        return tuple(meta["size"])
    if "scale" not in meta:
        return tuple(config.get("crop_size", (512, 512)))
    shorter, longer = sorted(meta["scale"])
    up = lambda length: math.ceil(length / meta["multiple"]) * meta["multiple"]  # noqa: E731
    return up(shorter), up(min(longer, round(shorter * 4 / 3)))


def read_pictures(source: Path | None, count: int) -> list[Image.Image]:
    """Up to `count` pictures of a file or folder, evenly spaced, at least three; scikit-image's if `source` is None."""
    if source is None:
        from skimage import data  # an optional package

        return [Image.fromarray(picture()) for picture in (data.astronaut, data.coffee, data.chelsea)]
    paths = image_files(source) if source.is_dir() else [source]
    pictures = [read_image(path) for path in paths[:: max(1, len(paths) // count)][:count]]
    while len(pictures) < 3:
        pictures.append(pictures[-1].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return pictures


def make_samples(
    pictures: Sequence[Image.Image], prepare: Callable, size: tuple[int, int], multiple: int
) -> list[Tensor]:
    """One picture of `size`, three of about two thirds of it, and one of another shape."""

    def part(length: int, share: float) -> int:
        return max(multiple * math.ceil(length * share / multiple), min(length, 64))

    height, width = size
    middle = part(height, 0.66), part(width, 0.66)
    return [
        prepare(pictures[0], size),
        torch.cat([prepare(picture, middle) for picture in pictures[:3]]),
        prepare(pictures[1], (part(height, 0.75), part(width, 0.5))),
    ]
