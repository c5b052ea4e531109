"""Everything that reads an image file for a classifier, as functions from a path to an RGB picture."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

import predict_onnx
from classification.data.loader import ImageDataset
from classification.data.samples import Samples
from classification.inference import read_image
from internimage.errors import UserError

# Four plain quadrants, 48 x 32: turned or mirrored in any way it is another picture.
_COLORS = np.array([[[255, 255, 255], [0, 0, 0]], [[128, 128, 128], [0, 128, 255]]], np.uint8)
UPRIGHT = _COLORS.repeat(16, 0).repeat(24, 1)

# How a camera held so stores the upright picture: the inverse of what a reader has to do.
_STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def save_turned(path: Path, orientation: int) -> Path:
    """Write the picture `UPRIGHT` as stored with an EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    quality = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(path.suffix[1:], {})
    Image.fromarray(np.ascontiguousarray(_STORED[orientation](UPRIGHT))).save(path, exif=exif, **quality)
    return path


def _dataset(path: Path) -> Image.Image:
    """As training and evaluation do, whose data sets differ in the transform alone."""
    samples = Samples(path.parent, [path.name], [0])
    return ImageDataset(samples, lambda image: image, substitute=False)[0][0]


def _onnx(path: Path) -> Image.Image:
    try:
        return predict_onnx.open_picture(path)
    except predict_onnx.Mistake as error:
        raise UserError(str(error)) from None


READERS = {"training and evaluation": _dataset, "predict and extract_feature": read_image, "predict_onnx": _onnx}
