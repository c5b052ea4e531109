"""Read image files as RGB, the same way for training, evaluation, prediction and export.

`predict_onnx.py`, which can be copied without this project, repeats these rules; a test compares the two.
"""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .errors import UserError
from .files import open_regular

__all__ = ["MAX_ASPECT_RATIO", "decode_rgb", "read_image", "upright_size"]

# The shorter side is resized to the model's size, so the number of pixels grows with the ratio: a file of 115 bytes,
# 12000 x 1 pixels becomes 2.7 million x 224. At 100 an image has at most 100 x IMG_SIZE^2 pixels (79 MB at 512).
MAX_ASPECT_RATIO = 100

# Formats without 32-bit integers: Pillow's mode I has 16-bit values, 0 to 65535.
_16_BIT_IN_I = ("PNG", "PPM")

_dark: list[str] = []  # the file that was warned about


def decode_rgb(file: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """Read an image file as 8-bit RGB, rotated by its EXIF orientation.

    16-bit grey values v become `round(v / 257)`, so 65535 is white. Pillow reduces 16-bit RGB to 8 bits.

    Args:
        file: path, or a binary file.
        name: of the file, for a warning about values that become nearly black.

    Raises:
        ValueError: 32-bit pixels (Pillow's modes I and F), which have no fixed range; an aspect ratio over
            `MAX_ASPECT_RATIO`. The message does not name the file.
        Image.DecompressionBombError: more pixels than twice `Image.MAX_IMAGE_PIXELS`.
        OSError: a file that cannot be read, or is not a regular file.
        Exception: Pillow raises many types for damaged files, such as SyntaxError and struct.error.
    """
    if isinstance(file, (str, Path)):
        with open_regular(file) as opened:
            return decode_rgb(opened, str(file))
    with Image.open(file) as image:
        shorter, longer = sorted(image.size)
        if longer > MAX_ASPECT_RATIO * shorter:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, but the longer side may be at most "
                f"{MAX_ASPECT_RATIO} times the shorter; crop it"
            )
        rgb = _eight_bits(image, name)
        if rgb.mode == "RGB":
            rgb.load()  # convert() would copy the pixels
        else:
            rgb = rgb.convert("RGB")
        try:
            # After the file was read: a PNG may have its EXIF data at the end.
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged EXIF data, for which Pillow raises many types: the pixels are still good
            orientation = 1
    if orientation != 1:
        # A copy without the file's other EXIF entries: exif_transpose would write them again and fails for some.
        rgb = rgb.copy()
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert 16-bit grey to 8-bit grey: in Pillow's conversion everything above 255 is white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_IN_I):
        values = np.asarray(image).astype(np.uint32)
        _warn_if_dark(name, int(values.max()))
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(
            f"its pixels are 32-bit {kind} (Pillow's mode {image.mode}), whose range is unknown; "
            "convert it to 8 or 16 bits"
        )
    return image


def _warn_if_dark(name: str, highest: int) -> None:
    """Warn once about values of 8 to 14 bits in a file of 16 bits."""
    bits = next((bits for bits in (8, 10, 12, 14) if 0 < highest < 2**bits), 16)
    if bits < 16 and not _dark:
        _dark.append(name)
        text = f"{name} becomes nearly black: its 16-bit values end at {highest}, and 65535 is taken as white"
        warnings.warn(f"{text}; if they have {bits} bits, multiply them by {2 ** (16 - bits)}", stacklevel=2)


def read_image(file: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """Read an image by `decode_rgb`. Raises `UserError`, with `name` or the path, for a missing or damaged file."""
    try:
        return decode_rgb(file, name or str(file))
    except FileNotFoundError:
        raise UserError(f"no image at {file}; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; give one image here, and folders to `internimage predict`") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"{name or file} cannot be read as an image ({error}); choose another image") from None


def upright_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file, rotated by its EXIF orientation. Only the header is read."""
    with Image.open(path) as image:
        quarter_turn = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if quarter_turn else image.size
