"""What a model found in one image: plain arrays that can be drawn, written as JSON and given to `supervision`."""

import colorsys
import functools
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import UserError

__all__ = ["ClassificationResult", "DetectionResult", "Result", "SegmentationResult", "cjk_font"]


def _supervision() -> ModuleType:
    try:
        import supervision  # an optional package
    except ImportError:
        raise UserError("to_supervision() needs the package supervision; run pip install supervision") from None
    return supervision


def _color(palette: Sequence, label: int) -> tuple[int, int, int]:
    """RGB of a class: the palette's, else one that differs from those of the neighbouring labels."""
    if label < len(palette):
        return tuple(palette[label])
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 1.0))


def _tint(pixels: np.ndarray, where: np.ndarray, color: Sequence[int]) -> None:
    pixels[where] = pixels[where] // 2 + np.array(color, np.uint8) // 2


def _canvas(pixels: np.ndarray) -> tuple[Image.Image, int]:
    """A picture to write on, and the factor by which it is enlarged: text on small ones could not be read."""
    factor = max(1, 320 // max(pixels.shape[:2]))
    return Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1)), factor


@functools.cache
def cjk_font() -> str | None:
    """File of an installed font with Chinese, Japanese and Korean letters, which matplotlib finds; else None."""
    from matplotlib.font_manager import findSystemFonts

    names = "cjk", "wqy", "droidsansfallback", "msyh", "simhei", "pingfang", "hiragino"
    found = [path for path in findSystemFonts() if any(name in Path(path).name.lower() for name in names)]
    return min(found, key=lambda path: ("regular" not in path.lower(), "serif" in path.lower(), path), default=None)


@functools.cache
def _font(size: int, cjk: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, if matplotlib is installed, which has it; Pillow's font lacks letters such as ß."""
    found = importlib.util.find_spec("matplotlib")
    path = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found else Path()
    path = Path((found and cjk and cjk_font()) or path)
    return ImageFont.truetype(path, size) if path.is_file() else ImageFont.load_default(size)


def _style(image: Image.Image, text: str) -> dict[str, object]:
    """White letters with a black edge, which are readable on any picture."""
    font = _font(max(11, min(image.size) // 30), max(text, default="") > "\u2e80")
    return {"text": text, "font": font, "stroke_width": 2}


def _extent(image: Image.Image, text: str) -> tuple[float, float]:
    """Width and height of a text in a picture."""
    return ImageDraw.Draw(image).textbbox((0, 0), **_style(image, text))[2:]


def _write(image: Image.Image, place: Sequence[float], text: str) -> None:
    """Write a text at its upper left corner, or as near as it is inside the picture."""
    place = [max(0, min(at, side - size)) for at, side, size in zip(place, image.size, _extent(image, text))]
    ImageDraw.Draw(image).text(place, **_style(image, text), fill="white", stroke_fill="black")


def _rle(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask `(H, W)` in COCO's uncompressed run-length encoding: runs of 0 and 1 in turn, down the columns."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}


@dataclass
class Result(ABC):
    """What all results have.

    Attributes:
        image: `(H, W, 3)`, RGB uint8.
        source: path or URL of the image or video; `image N` for the Nth one given as an array.
        frame: number of the frame in a video, from 0; None for images.
    """

    image: np.ndarray = field(repr=False)
    source: str
    frame: int | None = field(default=None, kw_only=True)

    @abstractmethod
    def _contents(self) -> dict[str, object]:
        """What `to_dict` has beside the image's source and size."""

    def to_dict(self) -> dict[str, object]:
        """Plain Python values, without the image."""
        place = {} if self.frame is None else {"frame": self.frame}
        height, width = self.image.shape[:2]
        return {"source": self.source, **place, "width": width, "height": height, **self._contents()}

    def to_json(self) -> str:
        """`to_dict()` as one line of JSON. Masks are in COCO's run-length encoding."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


@dataclass
class ClassificationResult(Result):
    """The most probable classes, in descending order.

    Attributes:
        labels: `(k,)`, int64.
        scores: `(k,)`, float32, probabilities.
        names: of the k classes.
    """

    labels: np.ndarray
    scores: np.ndarray
    names: list[str]

    def plot(self) -> Image.Image:
        """The image, enlarged if it is small, with the names and probabilities."""
        picture, _ = _canvas(self.image)
        _write(picture, (4, 4), "\n".join(f"{score:.1%} {name}" for name, score in zip(self.names, self.scores)))
        return picture

    def summary(self) -> str:
        """One line of text."""
        return f"{self.names[0]} {self.scores[0]:.1%}"

    def _contents(self) -> dict[str, object]:
        rows = zip(self.labels.tolist(), self.names, self.scores.tolist())
        return {"classes": [{"label": label, "name": name, "score": score} for label, name, score in rows]}

    def to_supervision(self) -> object:
        """`supervision.Classifications`. Raises `UserError` if the package is not installed."""
        return _supervision().Classifications(class_id=self.labels, confidence=self.scores)


@dataclass
class DetectionResult(Result):
    """Objects, in descending order of their scores.

    Attributes:
        boxes: `(n, 4)`, float32, corners x1, y1, x2, y2 in pixels of the image.
        scores: `(n,)`, float32, 0 to 1.
        labels: `(n,)`, int64.
        names: the class of each object.
        masks: `(n, H, W)`, bool; None if the model has no masks.
        palette: RGB of each class; may be empty.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    masks: np.ndarray | None = None
    palette: Sequence = ()

    def plot(self) -> Image.Image:
        """The image, enlarged if it is small, with masks, boxes, names and scores."""
        pixels = self.image.copy()
        colors = [_color(self.palette, label) for label in self.labels.tolist()]
        for mask, color in reversed([*zip(() if self.masks is None else self.masks, colors)]):
            _tint(pixels, mask, color)
        picture, factor = _canvas(pixels)
        draw, texts = ImageDraw.Draw(picture), {}
        for box, color, name, score in zip((factor * self.boxes).tolist(), colors, self.names, self.scores):
            draw.rectangle(box, outline=color, width=max(1, max(picture.size) // 400))
            text = name if np.isnan(score) else f"{name} {score:.0%}"  # a truth has no score
            width, height = _extent(picture, text)
            corners = [(x, y) for x in (box[0] + 2, box[2] - width) for y in (max(0, box[1]), box[3] - height)]
            spots = [(x, y, x + width, y + height) for x, y in corners]
            free = (
                a for a in spots if all(a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3] for b in texts)
            )
            texts.setdefault(next(free, spots[0]), text)
        for spot, text in reversed(texts.items()):  # the highest score on top
            _write(picture, spot[:2], text)
        return picture

    def summary(self) -> str:
        """One line of text."""
        counts = [f"{self.names.count(name)} {name}" for name in dict.fromkeys(self.names)]
        return f"{len(self.names)} objects" + (f" ({', '.join(counts)})" if counts else "")

    def _contents(self) -> dict[str, object]:
        rows = zip(self.labels.tolist(), self.names, self.scores.tolist(), self.boxes.tolist())
        objects = [{"label": label, "name": name, "score": score, "box": box} for label, name, score, box in rows]
        for item, mask in zip(objects, () if self.masks is None else self.masks):
            item["mask"] = _rle(mask)
        return {"objects": objects}

    def to_supervision(self) -> object:
        """`supervision.Detections`. Raises `UserError` if the package is not installed."""
        names = {"class_name": np.array(self.names, dtype=object)}
        return _supervision().Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=names
        )


@dataclass
class SegmentationResult(Result):
    """The class of each pixel.

    Attributes:
        labels: `(H, W)`, int64.
        names: of all classes.
        palette: RGB of each class; may be empty.
    """

    labels: np.ndarray
    names: list[str]
    palette: Sequence = ()

    def _present(self) -> list[tuple[int, str, np.ndarray]]:
        """Label, name and mask of each class in the image; labels without a name, such as 255, are ignored."""
        labels = [label for label in np.unique(self.labels).tolist() if label < len(self.names)]
        return [(label, self.names[label], self.labels == label) for label in labels]

    def plot(self) -> Image.Image:
        """The image, enlarged if it is small, tinted by class, with each name where its class is widest."""
        import cv2  # mmseg, which these results are from, needs it

        pixels = self.image.copy()
        present = self._present()
        for label, _, mask in present:
            _tint(pixels, mask, _color(self.palette, label))
        picture, factor = _canvas(pixels)
        for _, name, mask in present:
            depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            width, height = _extent(picture, name)
            _write(picture, (factor * x - width / 2, factor * y - height / 2), name)
        return picture

    def summary(self) -> str:
        """One line of text."""
        shares = sorted(((mask.mean(), name) for _, name, mask in self._present()), reverse=True)
        return ", ".join(f"{share:.0%} {name}" for share, name in shares)

    def _contents(self) -> dict[str, object]:
        return {
            "classes": [
                {"label": label, "name": name, "pixels": int(mask.sum()), "mask": _rle(mask)}
                for label, name, mask in self._present()
            ]
        }

    def to_supervision(self) -> object:
        """`supervision.Detections`, one for each class in the image. Raises `UserError` if it is not installed."""
        present = self._present()
        places = [np.nonzero(mask) for _, _, mask in present]
        boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in places]
        return _supervision().Detections(
            xyxy=np.array(boxes, np.float32),
            mask=np.stack([mask for _, _, mask in present]),
            class_id=np.array([label for label, _, _ in present]),
            data={"class_name": np.array([name for _, name, _ in present], dtype=object)},
        )
