"""Run an exported classifier, detector or segmentor on an image. Needs only onnxruntime, numpy and Pillow.

    python predict_onnx.py model.onnx photo.jpg
    python predict_onnx.py model.onnx photo.jpg --output picture.png --threshold 0.5

Pre-processing, class names and colours are read from the metadata that `export.py` writes into the model. This file can
be copied and used without the rest of the project.
"""

import argparse
import colorsys
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageOps

__all__ = ["Mistake", "Model", "Prepared", "open_picture", "paste_mask", "prepare", "show"]

_MAX_PIXELS = 2**26  # of the network's input: damaged metadata may ask for any size


class Mistake(Exception):
    """Bad input. The message is one line."""


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# From files to pictures: the rules of internimage/images.py


def _read_picture(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        shorter, longer = sorted(image.size)
        if longer > 100 * shorter:
            shape = f"{image.width} x {image.height} pixels"
            raise ValueError(f"it has {shape}, but the longer side may be at most 100 times the shorter; crop it")
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            rgb = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
        elif image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits (Pillow's mode {image.mode}); convert it to 8 or 16 bits")
        else:
            rgb = image.convert("RGB")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged EXIF data
            orientation = 1
    if orientation != 1:
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def open_picture(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, rotated by its EXIF orientation; 16-bit grey values are divided by 257.

    Raises:
        Mistake: a damaged file, 32-bit pixels, or an aspect ratio over 100.
    """
    try:
        return _read_picture(path)
    except Exception as error:
        raise Mistake(f"{path} is not a readable image: {_reason(error)}") from error


# From pictures to tensors


class Prepared(NamedTuple):
    """Input of a network: `images` `(1, C, H, W)`, and the width and height of the picture in it, without padding."""

    images: np.ndarray
    size: tuple[int, int]


def _sample(pixels: Image.Image, size: tuple[int, int], scale: tuple[float, float], start=(0.0, 0.0)) -> np.ndarray:
    """Bilinear samples `(height, width)` of an image of one channel; `scale` and `start` are pixels along x and y."""
    where = (scale[0], 0, start[0], 0, scale[1], start[1])
    return np.asarray(pixels.convert("F").transform(size, Image.Transform.AFFINE, where, Image.Resampling.BILINEAR))


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize to (width, height). OpenCV, which mmdet and mmseg use, does not average when it shrinks an image."""
    if size[0] * size[1] > _MAX_PIXELS:
        raise ValueError(f"it asks for images of {size[0]} x {size[1]} pixels")
    if image.size == size:
        return image
    if interpolation != "opencv bilinear":
        return image.resize(size, Image.Resampling[interpolation.upper()])
    scale = image.width / size[0], image.height / size[1]
    channels = [_sample(channel, size, scale) for channel in image.split()]
    return Image.fromarray(np.rint(np.stack(channels, -1)).astype(np.uint8))


def prepare(image: Image.Image, meta: dict, fixed: tuple[int, int] | None = None) -> Prepared:
    """Resize, normalise and pad a picture as the metadata say; `fixed`: height and width of a static model.

    Raises:
        ValueError: metadata with impossible values.
    """
    rule, interpolation, image = meta["resize"], meta["interpolation"], image.convert("RGB")
    size = image.size
    if rule in ("stretch", "shorter side, centre crop"):
        height, width = fixed or meta["size"]
        scale = max(width / size[0], height / size[1]) if rule != "stretch" else 0
        size = max(width, int(size[0] * scale + 1e-6)), max(height, int(size[1] * scale + 1e-6))
        image = _resize(image, size, interpolation)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    elif rule.startswith("keep"):  # "keep ratio" or "keep size", then "pad to multiple" or "stretch to multiple"
        if "ratio" in rule:  # into a frame of two sides, turned as the picture is
            scale = min(max(meta["scale"]) / max(size), min(meta["scale"]) / min(size))
            size = int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)
        height, width = fixed or (-(-length // meta["multiple"]) * meta["multiple"] for length in reversed(size))
        if "stretch" in rule:
            image = image if fixed else _resize(image, size, interpolation)
            size = width, height
        elif size[0] > width or size[1] > height:
            scale = min(width / image.width, height / image.height)
            size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image = _resize(image, size, interpolation)
    else:
        raise ValueError(f"its metadata have an unknown resize rule, {rule!r}")
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels[..., ::-1] if meta.get("channels") == "BGR" else pixels
    mean, std = (np.float32(meta[name]) * np.float32(255) for name in ("mean", "std"))
    if len(mean) == 1:
        pixels = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    if not (std > 0).all():
        raise ValueError(f"its std {meta['std']} is not positive")
    pixels = ((pixels - mean) / std).transpose(2, 0, 1)
    pixels = np.pad(pixels, ((0, 0), (0, height - image.height), (0, width - image.width)))
    return Prepared(np.ascontiguousarray(pixels[None]), image.size)


class Model:
    """An exported model and its metadata. Raises `ValueError` for a model that this project did not export."""

    def __init__(self, path: str | Path) -> None:
        try:
            import onnxruntime  # here, because exports to other formats import this file for `prepare` only
        except ImportError:
            raise Mistake("onnxruntime is not installed; pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.read_metadata(self.session.get_modelmeta().custom_metadata_map)
        (source,) = self.session.get_inputs()
        if len(source.shape) != 4 or source.type != "tensor(float)":
            raise ValueError(f"its input is {source.type} {source.shape}, not float32 images (N, 3, H, W)")
        self.input, self.batch = source.name, source.shape[0] if isinstance(source.shape[0], int) else 1
        self.fixed = tuple(source.shape[2:]) if all(isinstance(length, int) for length in source.shape[2:]) else None
        self.outputs = [output.name for output in self.session.get_outputs()]

    def read_metadata(self, texts: dict[str, str]) -> None:
        """Set `meta` from texts, which are JSON or plain words."""
        self.meta: dict = {}
        for key, text in texts.items():
            try:
                self.meta[key] = json.loads(text)
            except json.JSONDecodeError:
                self.meta[key] = text
        missing = {"task", "resize", "interpolation", "mean", "std"} - self.meta.keys()
        if missing or self.meta["task"] not in _TASKS:
            raise ValueError("it has no metadata of this project")

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """The outputs for one image `(1, C, H, W)`."""
        if self.batch * images[0].size > 3 * _MAX_PIXELS:
            raise ValueError(f"it takes batches of {self.batch} images")
        return self.session.run(None, {self.input: images.repeat(self.batch, 0)})

    def __call__(self, image: Image.Image) -> tuple[dict[str, np.ndarray], Prepared]:
        """The outputs for one picture by name, and the network's input."""
        prepared = prepare(image, self.meta, self.fixed)
        outputs = {name: value[0] for name, value in zip(self.outputs, self.run(prepared.images))}
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(f"its output {name} has NaN or infinite values for this picture")
        return outputs, prepared

    def name(self, label: int) -> str:
        """The name of a class."""
        names = self.meta.get("class_names") or []
        return str(names[label]) if label < len(names) else f"class {label}"

    def color(self, label: int) -> tuple[int, int, int]:
        """The colour of a class: from the metadata's palette, else generated."""
        palette = self.meta.get("palette") or []
        if label < len(palette):
            return tuple(palette[label])
        return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 1.0))


# From tensors to results

_LABEL = {"fill": "white", "stroke_width": 2, "stroke_fill": "black"}  # readable on any picture


def paste_mask(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Probabilities `(height, width)` of a mask `(h, w)` that covers `box` (x1, y1, x2, y2, ...); zero outside."""
    scale = np.array(mask.shape[::-1]) / np.maximum(box[2:4] - box[:2], 1e-6)
    padded = Image.fromarray(np.pad(mask, 1).astype(np.float32))  # the border of zeros shifts the mask by 1
    return _sample(padded, (width, height), tuple(scale), tuple(1 - scale * box[:2]))


def _tint(image: Image.Image, where: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[where] = pixels[where] // 2 + np.array(color, np.uint8) // 2
    return Image.fromarray(pixels)


def _enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    """A picture to write on, and the factor by which it is enlarged: text on small ones covers everything."""
    factor = max(1, 320 // max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST), factor


def classify(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print the five most probable classes; return the picture with them."""
    logits = model(image)[0]["logits"].astype(np.float64)
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    order = [label for label in np.argsort(-scores)[:5] if scores[label] >= threshold]
    text = "\n".join(f"{scores[label]:7.2%}  {model.name(label)}" for label in order)
    if order:
        print(text)
    image, _ = _enlarged(image)
    ImageDraw.Draw(image).text((4, 4), text, **_LABEL)
    return image


def detect(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print the objects and their boxes in pixels of the picture; return it with boxes and masks."""
    outputs, prepared = model(image)
    scale = np.array([image.width / prepared.size[0], image.height / prepared.size[1]] * 2, np.float32)
    boxes, scores, labels = outputs["boxes"][:, :4] * scale, outputs["boxes"][:, 4], outputs["labels"]
    found = [i for i in np.argsort(-scores, kind="stable") if labels[i] >= 0 and scores[i] >= threshold]
    for i in found:
        print(f"{scores[i]:7.2%}  {model.name(labels[i])}  ({', '.join(f'{value:.1f}' for value in boxes[i])})")
    print(f"{len(found)} objects with a score of at least {threshold}")
    for i in found if "masks" in outputs else ():
        mask = paste_mask(outputs["masks"][i], boxes[i], *image.size)
        image = _tint(image, mask >= model.meta["mask_threshold"], model.color(labels[i]))
    image, factor = _enlarged(image)
    boxes, draw = factor * boxes, ImageDraw.Draw(image)
    for i in reversed(found):  # the highest score on top
        draw.rectangle(list(boxes[i]), outline=model.color(labels[i]), width=max(1, max(image.size) // 400))
        place = boxes[i][0] + 2, max(0, boxes[i][1] - 12)
        draw.text(place, f"{model.name(labels[i])} {scores[i]:.0%}", **_LABEL)
    return image


def segment(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print the share of each class; return the picture, coloured where the score is at least `threshold`."""
    outputs, _ = model(image)
    labels = np.where(outputs["scores"] >= threshold, outputs["labels"], -1).astype(np.int32)
    labels = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    for label, count in sorted(zip(classes, counts), key=lambda pair: -pair[1]):
        print(f"{count / labels.size:7.2%}  {model.name(label)}")
        image = _tint(image, labels == label, model.color(label))
    return image


_TASKS = {"classification": classify, "detection": detect, "segmentation": segment}


def show(load: Callable[[], Model], path: str, image: str, out: Path | None, threshold: float | None) -> None:
    """Print the results of the model `load()`, made from the file `path`, for an image, and draw them to `out`.

    Raises:
        Mistake: the image, the model or `out` cannot be used.
    """
    picture = open_picture(image)
    try:
        model = load()
        threshold = float(model.meta.get("threshold", 0)) if threshold is None else threshold
        picture = _TASKS[model.meta["task"]](model, picture, threshold)
    except (Mistake, BrokenPipeError):
        raise
    except Exception as error:  # a damaged model may raise any exception anywhere
        raise Mistake(f"{path} cannot be used: {_reason(error)}; export the model again") from error
    if out:
        try:
            picture.save(out)
        except (OSError, ValueError) as error:
            raise Mistake(f"cannot write {out}: {error}; choose another file") from error
        print(f"wrote {out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="ONNX file from an export.py")
    parser.add_argument("image", help="image file")
    parser.add_argument("--output", "--out", type=Path, help="write the picture with the results drawn into it")
    parser.add_argument("--threshold", type=float, help="lowest score shown; default: the model's (detectors 0.3)")
    args = parser.parse_args(argv)
    try:
        if Path(args.model).suffix != ".onnx":
            raise Mistake(f"{args.model} is not a .onnx file; this script supports ONNX models only")
        for path, what in ((args.model, "model"), (args.image, "image")):
            if not Path(path).is_file():
                raise Mistake(f"no {what} at {path}")
        show(lambda: Model(args.model), args.model, args.image, args.output, args.threshold)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
