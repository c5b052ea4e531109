"""Image files to RGB pictures, the same way for training, evaluation, prediction and export.

`predict_onnx.py`, which may be copied without this project, repeats these rules; a test compares the two.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .files import open_regular

__all__ = ["MAX_ASPECT_RATIO", "decode_rgb", "upright_size"]

# The shorter side is resized to the model's size, so the pixels to compute grow with the ratio: a file of 115 bytes
# with 12000 x 1 pixels became 2.7 million x 224. At 100 an image costs at most 100 x IMG_SIZE^2 pixels (79 MB at 512).
MAX_ASPECT_RATIO = 100

# Formats that have no 32-bit integers: Pillow's mode I then holds 16-bit values, 0 to 65535.
_16_BIT_IN_I = ("PNG", "PPM")


def decode_rgb(file: str | Path | BinaryIO) -> Image.Image:
    """Read an image file as RGB of 8 bits per channel, turned upright by its EXIF orientation.

    16-bit grey values v become `round(v / 257)`, so that 65535 is white. Pillow itself reduces 16-bit RGB to 8 bits.

    Args:
        file: path, or a binary file.

    Raises:
        ValueError: pixels of 32 bits (Pillow's modes I and F), which have no fixed range; an aspect ratio over
            `MAX_ASPECT_RATIO`. The message is the reason alone: who calls knows the file's name.
        Image.DecompressionBombError: more pixels than twice `Image.MAX_IMAGE_PIXELS`.
        OSError: a file that cannot be read, or is not a regular one.
        Exception: Pillow raises many kinds for damaged files, SyntaxError and struct.error among them.
    """
    if isinstance(file, (str, Path)):
        with open_regular(file) as opened:
            return decode_rgb(opened)
    with Image.open(file) as image:
        shorter, longer = sorted(image.size)
        if longer > MAX_ASPECT_RATIO * shorter:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, but the longer side may be at most "
                f"{MAX_ASPECT_RATIO} times the shorter; crop it"
            )
        rgb = _eight_bits(image).convert("RGB")
        try:
            # After convert(), which reads the file: a PNG may have its EXIF data at the end.
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged EXIF data, of which Pillow raises many kinds: the pixels are still good
            return rgb
    if orientation != 1:
        # Without the file's other EXIF entries: exif_transpose would write them anew and fails at some.
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """`image` itself, or 8-bit grey from 16-bit grey: Pillow's own conversion makes 256 and all above white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_IN_I):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(
            f"its pixels are 32-bit {kind} (Pillow's mode {image.mode}), whose range is not known; "
            "convert it to 8 or 16 bits"
        )
    return image


def upright_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file, turned upright by its EXIF orientation. Only the header is read."""
    with Image.open(path) as image:
        quarter_turn = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if quarter_turn else image.size
