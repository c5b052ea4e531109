"""Images from whatever a user has: paths, URLs, folders, patterns, videos, pictures of Pillow, arrays and tensors."""

import glob
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image

from .errors import UserError
from .images import read_image

__all__ = ["IMAGES", "VIDEOS", "Picture", "image_files", "iter_images"]

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Picture(NamedTuple):
    """One RGB image, where it comes from, and its number in a video."""

    image: Image.Image
    source: str
    frame: int | None = None


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted. Raises `UserError` if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f"{folder} has no images ({', '.join(IMAGES)}); check the path")
    return found


def iter_images(images: object, on_error: Callable[[UserError], None] | None = None) -> Iterator[Picture]:
    """Give one image after another; files are read when it is their turn.

    Args:
        images: path of an image, a video or a folder; a pattern such as `"*.jpg"`; a URL of an image; a picture of
            Pillow; an array `(H, W, 3)`, RGB uint8, or `(H, W)`; a tensor `(3, H, W)` or `(N, 3, H, W)`, RGB, uint8 or
            floating-point from 0 to 1; an iterable of these.
        on_error: called with the error of each image that cannot be read; without it, the first one is raised.

    Raises:
        UserError: a missing or damaged file, something that is not an image.
    """
    count = 0
    for load in _loaders(images):
        try:
            for picture in load():
                yield picture if picture.source else picture._replace(source=f"image {count}")
                count += 1
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)


def _loaders(images: object) -> Iterator[Callable[[], Iterable[Picture]]]:
    """A function for each file, or array, which gives its images."""
    if isinstance(images, (str, Path)):
        yield from _path_loaders(str(images))
    elif isinstance(images, (Image.Image, np.ndarray)):
        yield lambda: [Picture(_from_array(images) if isinstance(images, np.ndarray) else images.convert("RGB"), "")]
    elif isinstance(images, torch.Tensor):
        for image in images if images.ndim == 4 else [images]:
            yield lambda image=image: [Picture(_from_tensor(image), "")]
    elif isinstance(images, Iterable):
        for item in images:
            yield from _loaders(item)
    else:
        raise UserError(f"{type(images).__name__} is not an image; give a path, a URL, an array or a list of these")


def _path_loaders(text: str) -> Iterator[Callable[[], Iterable[Picture]]]:
    path = Path(text).expanduser()
    if text.startswith(("http://", "https://")):
        yield lambda: [Picture(_download(text), text)]
        return
    if path.is_dir():
        paths = image_files(path)
    elif not path.exists() and glob.has_magic(text):
        paths = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not paths:
            raise UserError(f"no file matches {text}; check the pattern")
    else:
        paths = [path]
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            yield lambda path=path: _frames(path)
        else:
            yield lambda path=path: [Picture(read_image(path), str(path))]


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise UserError(f"an array must be (H, W, 3), RGB uint8, or (H, W); got {array.shape}, {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise UserError(f"a tensor must be (3, H, W) or (N, 3, H, W); got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        low, high = tensor.min().item(), tensor.max().item()
        if low < -1e-3 or high > 1 + 1e-3:
            raise UserError(f"a floating-point tensor must have values from 0 to 1; got {low:.3g} to {high:.3g}")
        tensor = (tensor.clamp(0, 1) * 255).round()
    return _from_array(tensor.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


def _download(url: str) -> Image.Image:
    try:
        with urlopen(Request(url, headers={"User-Agent": "internimage"}), timeout=30) as response:
            content = io.BytesIO(response.read())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot download {url} ({error}); check the URL, or download it by hand") from None
    return read_image(content, url)


def _frames(path: Path) -> Iterator[Picture]:
    try:
        import cv2  # an optional package; a requirement of mmcv
    except ImportError:
        raise UserError(f"{path}: videos need OpenCV; run pip install opencv-python-headless") from None
    if not path.is_file():
        raise UserError(f"no video at {path}; check the path")
    video = cv2.VideoCapture(str(path))
    number = 0
    try:
        while (found := video.read())[0]:
            yield Picture(Image.fromarray(found[1][..., ::-1].copy()), str(path), number)
            number += 1
    finally:
        video.release()
    if not number:
        raise UserError(f"{path} cannot be read as a video; convert it, for example to MP4 with H.264")
