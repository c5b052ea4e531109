"""Run an exported classifier, detector or segmentor on an image, with nothing but onnxruntime, numpy and Pillow.

    python predict_onnx.py model.onnx photo.jpg
    python predict_onnx.py model.onnx photo.jpg --out picture.png --threshold 0.5

How to resize and normalise the image, class names and colours are in the model's metadata, where `export.py` put them.
This file may be copied beside a model and needs nothing else of the project.
"""

import argparse
import colorsys
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from PIL import ExifTags, Image, ImageDraw, ImageOps

__all__ = ["Model", "Prepared", "paste_mask", "prepare", "read_picture"]


class Prepared(NamedTuple):
    """What a network takes: `images` `(1, 3, H, W)`, and the picture's width and height in it, without padding."""

    images: np.ndarray
    size: tuple[int, int]


# From files to pictures, by the rules of internimage/images.py, which says why

_MAX_ASPECT_RATIO = 100
_16_BIT_IN_I = ("PNG", "PPM")


def read_picture(path: str | Path) -> Image.Image:
    """An image file as RGB of 8 bits, turned upright by its EXIF orientation; 16-bit grey is divided by 257.

    Raises:
        ValueError: pixels of 32 bits, or an aspect ratio over 100. Damaged files raise what Pillow likes.
    """
    with Image.open(path) as image:
        shorter, longer = sorted(image.size)
        if longer > _MAX_ASPECT_RATIO * shorter:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, but the longer side may be at most "
                f"{_MAX_ASPECT_RATIO} times the shorter; crop it"
            )
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_IN_I):
            rgb = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
        elif image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits (Pillow's mode {image.mode}); convert it to 8 or 16 bits")
        else:
            rgb = image.convert("RGB")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged EXIF data
            return rgb
    if orientation != 1:
        rgb.info.clear()
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


# From pictures to tensors


def _between(pixels: np.ndarray, length: int) -> np.ndarray:
    """Resize the first axis: a mixture of the two nearest pixels, however much shorter the result is."""
    old = pixels.shape[0]
    place = np.clip((np.arange(length, dtype=np.float32) + 0.5) * old / length - 0.5, 0, old - 1)
    low = place.astype(np.int64)
    share = (place - low)[:, None, None].astype(np.float32)
    return pixels[low] * (1 - share) + pixels[np.minimum(low + 1, old - 1)] * share


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize to (width, height). OpenCV, which mmdet and mmseg use, takes no mean where it makes an image smaller."""
    if image.size == size:
        return image
    if interpolation == "opencv bilinear":
        rows = _between(np.asarray(image, dtype=np.float32), size[1])
        pixels = _between(rows.transpose(1, 0, 2), size[0]).transpose(1, 0, 2)
        return Image.fromarray(np.rint(pixels).astype(np.uint8))
    return image.resize(size, getattr(Image.Resampling, interpolation.upper(), Image.Resampling.BICUBIC))


def _crop_centre(image: Image.Image, height: int, width: int, interpolation: str) -> Image.Image:
    """Scale until the picture covers `height` x `width`, and cut out the middle."""
    scale = max(width / image.width, height / image.height)
    size = max(width, int(image.width * scale + 1e-6)), max(height, int(image.height * scale + 1e-6))
    image = _resize(image, size, interpolation)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _fitting_size(image: Image.Image, *frame: float) -> tuple[int, int]:
    """Width and height of the picture scaled into a frame of two sides, turned as the picture is."""
    scale = min(max(frame) / max(image.size), min(frame) / min(image.size))
    return int(image.width * scale + 0.5), int(image.height * scale + 0.5)


def prepare(image: Image.Image, meta: dict, fixed: tuple[int, int] | None = None) -> Prepared:
    """Resize, normalise and pad a picture as the metadata say; `fixed` is the height and width of a static model."""
    rule, multiple = meta["resize"], meta.get("multiple", 1)
    interpolation = meta["interpolation"]
    image = image.convert("RGB")
    padded = None
    if rule == "shorter side, centre crop":
        image = _crop_centre(image, *(fixed or meta["size"]), interpolation)
    elif rule == "stretch":
        height, width = fixed or meta["size"]
        image = _resize(image, (width, height), interpolation)
    else:  # "keep ratio" or "keep size", then "pad to multiple" or "stretch to multiple"
        size = _fitting_size(image, *meta["scale"]) if "keep ratio" in rule else image.size
        target = fixed or tuple(-(-length // multiple) * multiple for length in reversed(size))
        if "pad" in rule:
            if fixed and (size[0] > fixed[1] or size[1] > fixed[0]):
                scale = min(fixed[1] / image.width, fixed[0] / image.height)
                size = tuple(max(1, int(length * scale)) for length in image.size)
            padded = target
            image = _resize(image, size, interpolation)
        else:
            if not fixed:
                image = _resize(image, size, interpolation)
            image = _resize(image, target[::-1], interpolation)
    pixels = np.asarray(image, dtype=np.float32)
    if meta.get("channels") == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = (np.float32(meta[name]) * np.float32(255) for name in ("mean", "std"))
    pixels = ((pixels - mean) / std).transpose(2, 0, 1)
    if padded:
        pixels = np.pad(pixels, ((0, 0), (0, padded[0] - image.height), (0, padded[1] - image.width)))
    return Prepared(np.ascontiguousarray(pixels[None]), image.size)


class Model:
    """An exported model and its metadata.

    Args:
        path: ONNX file.
        custom_ops: library with the operators of a file exported with `--core custom`.
    """

    def __init__(self, path: str | Path, custom_ops: str | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if custom_ops:
            options.register_custom_ops_library(custom_ops)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.meta: dict = {}
        for key, value in self.session.get_modelmeta().custom_metadata_map.items():
            try:
                self.meta[key] = json.loads(value)
            except json.JSONDecodeError:
                self.meta[key] = value
        shape = self.session.get_inputs()[0].shape[2:]
        self.fixed = tuple(shape) if all(isinstance(length, int) for length in shape) else None

    def __call__(self, image: Image.Image) -> tuple[dict[str, np.ndarray], Prepared]:
        """The outputs for one picture by name, and what the network was given."""
        prepared = prepare(image, self.meta, self.fixed)
        source = self.session.get_inputs()[0]
        batch = source.shape[0] if isinstance(source.shape[0], int) else 1
        outputs = self.session.run(None, {source.name: prepared.images.repeat(batch, 0)})
        return {output.name: value[0] for output, value in zip(self.session.get_outputs(), outputs)}, prepared

    def name(self, label: int) -> str:
        """The name of a class."""
        names = self.meta.get("class_names") or []
        return str(names[label]) if label < len(names) else f"class {label}"

    def color(self, label: int) -> tuple[int, int, int]:
        """The colour of a class: the data set's, or one of a circle that steps by the golden ratio."""
        palette = self.meta.get("palette") or []
        if label < len(palette):
            return tuple(palette[label])
        return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 1.0))


# From tensors to results


def paste_mask(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Probabilities `(height, width)` of a mask `(h, w)` that covers `box` (x1, y1, x2, y2); zero outside."""

    def weights(low: float, high: float, cells: int, length: int) -> np.ndarray:
        place = (np.arange(length) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))

    rows, columns = weights(box[1], box[3], mask.shape[0], height), weights(box[0], box[2], mask.shape[1], width)
    return rows @ mask @ columns.T


def _tint(image: Image.Image, where: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[where] = pixels[where] // 2 + np.array(color, np.uint8) // 2
    return Image.fromarray(pixels)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int]) -> None:
    draw.rectangle(draw.textbbox(place, text), fill=color)
    draw.text(place, text, fill=(0, 0, 0) if sum(color) > 380 else (255, 255, 255))


def classify(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print the five likeliest classes; return the picture with the first one's name."""
    logits = model(image)[0]["logits"].astype(np.float64)
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    order = [label for label in np.argsort(-scores)[:5] if scores[label] >= threshold]
    for label in order:
        print(f"{scores[label]:7.2%}  {model.name(label)}")
    if order:
        _write(ImageDraw.Draw(image), (4, 4), f"{model.name(order[0])} {scores[order[0]]:.0%}", (255, 255, 255))
    return image


def detect(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print the objects and their boxes in pixels of the picture; return it with boxes and masks."""
    outputs, prepared = model(image)
    scale = np.array([image.width / prepared.size[0], image.height / prepared.size[1]] * 2, np.float32)
    boxes, scores = outputs["boxes"][:, :4] * scale, outputs["boxes"][:, 4]
    found = [i for i in np.argsort(-scores, kind="stable") if outputs["labels"][i] >= 0 and scores[i] >= threshold]
    for i in found:
        corners = ", ".join(f"{value:.1f}" for value in boxes[i])
        print(f"{scores[i]:7.2%}  {model.name(outputs['labels'][i])}  ({corners})")
    print(f"{len(found)} objects with a score of at least {threshold}")
    for i in found if "masks" in outputs else ():
        mask = paste_mask(outputs["masks"][i], boxes[i], *image.size)
        image = _tint(image, mask >= model.meta["mask_threshold"], model.color(outputs["labels"][i]))
    draw = ImageDraw.Draw(image)
    for i in found:
        color = model.color(outputs["labels"][i])
        draw.rectangle(list(boxes[i]), outline=color, width=max(1, max(image.size) // 400))
        text = f"{model.name(outputs['labels'][i])} {scores[i]:.0%}"
        _write(draw, (boxes[i][0], max(0, boxes[i][1] - 11)), text, color)
    return image


def segment(model: Model, image: Image.Image, threshold: float) -> Image.Image:
    """Print each class's share of the picture; return it with the classes' colours where the score is high enough."""
    outputs, _ = model(image)
    labels = np.where(outputs["scores"] >= threshold, outputs["labels"], -1).astype(np.int32)
    labels = np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    for label, count in sorted(zip(classes, counts), key=lambda pair: -pair[1]):
        print(f"{count / labels.size:7.2%}  {model.name(label)}")
        image = _tint(image, labels == label, model.color(label))
    return image


_TASKS = {"classification": classify, "detection": detect, "segmentation": segment}


class _Mistake(Exception):
    """Bad input, in one line."""


def open_picture(path: str | Path) -> Image.Image:
    """`read_picture`, whose errors end in one line that names the file."""
    try:
        return read_picture(path)
    except Exception as error:  # Pillow's decoders raise what they like
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _Mistake(f"{path} is not a readable image: {reason}") from error


def _load(args: argparse.Namespace) -> tuple[Model, Image.Image]:
    if Path(args.model).suffix != ".onnx":
        raise _Mistake(f"{args.model} is no .onnx file; this script runs ONNX models alone")
    for path, what in ((args.model, "model"), (args.image, "image")):
        if not Path(path).is_file():
            raise _Mistake(f"no {what} at {path}")
    image = open_picture(args.image)
    try:
        model = Model(args.model, args.custom_ops)
    except Exception as error:  # onnxruntime has no common base class of its errors
        hint = "; a file of --core custom needs --custom-ops LIBRARY" if "ops_dcnv3" in str(error) else ""
        raise _Mistake(f"ONNX Runtime cannot load {args.model}: {str(error).splitlines()[0]}{hint}") from error
    if model.meta.get("task") not in _TASKS:
        raise _Mistake(f"{args.model} has no metadata of this project; write it with one of the export.py scripts")
    return model, image


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="ONNX file from an export.py")
    parser.add_argument("image", help="image file")
    parser.add_argument("--out", type=Path, help="picture to write with the result drawn into it")
    parser.add_argument("--threshold", type=float, help="lowest score shown; default: the model's (detectors 0.3)")
    parser.add_argument(
        "--custom-ops",
        metavar="LIBRARY",
        help="for files exported with --core custom: what `python -m ops_dcnv3.ort_build` prints",
    )
    args = parser.parse_args(argv)
    try:
        model, image = _load(args)
        threshold = args.threshold if args.threshold is not None else float(model.meta.get("threshold", 0))
        picture = _TASKS[model.meta["task"]](model, image, threshold)
        if args.out:
            try:
                picture.save(args.out)
            except (OSError, ValueError) as error:
                raise _Mistake(f"cannot write {args.out}: {error}") from error
            print(f"drawn to {args.out}")
    except _Mistake as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
