"""Own data read from its files, checked against its images, with a validation set."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask

from ...errors import UserError
from ...files import open_regular
from ...images import upright_size
from .readers import READERS, Object, Problems, Scene, color_table, read_classes, yolo_file

__all__ = ["OwnData", "Pair", "label_map", "load", "to_rle"]

Pair = tuple[str, str]
BACKGROUNDS = {"background", "_background_"}  # of label maps that are painted from outlines; LabelMe's is the second


class OwnData(NamedTuple):
    """A data set that can be trained on."""

    format: str
    classes: list[str]  # in the order of the labels
    palette: list[list[int]]  # empty if the format has none
    scenes: dict[str, list[Scene]]  # of train and val
    as_it_is: bool  # nothing was converted, split, repaired or dropped


def load(
    root: Path, halves: Sequence[Pair], format: str | None = None, *, masks: bool = False, maps: bool = False
) -> OwnData:
    """Read and check own data; print what was repaired or dropped.

    Args:
        root: folder of the data set.
        halves: annotations and images for training and validation, relative to `root`; by default those of its
            `data.yaml`. Without validation, a fifth of the images is split off.
        format: a key of `READERS`; by default the one that the files have.
        masks: whether every object needs an outline.
        maps: whether label maps are learnt, not objects.

    Raises:
        UserError: no annotations, unknown format; or all problems that stop a training, in one message.
    """
    format, places = _places(root, halves, format)
    if format in ("cvat", "label-maps") and not maps:
        raise UserError(f"{root} has label maps, without objects; from CVAT, export COCO, Ultralytics YOLO or VOC")
    problems, palette = Problems(), []
    read = {half: READERS[format](*where, problems) for half, where in places.items()}
    scenes, lists = {half: found for half, (_, found) in read.items()}, [names for names, _ in read.values()]
    if lists[0] != lists[-1]:
        raise UserError(
            f"training and validation have different categories, {lists[0]} and {lists[-1]}; give both the same list "
            "in the same order"
        )
    both = [scene for found in scenes.values() for scene in found]
    classes = lists[0] or sorted({one.name for scene in both for one in scene.objects})
    if format == "label-maps":
        classes, palette = read_classes(root / "classes.json").values()
    elif format == "cvat":
        palette = [*color_table(places["train"][0].parent / "labelmap.txt").values()]
    elif maps and not BACKGROUNDS & {*classes}:
        classes = ["background", *classes]
    _check(both, classes, problems, masks)
    for name, count in Counter(image.with_suffix("") for image in {scene.image for scene in both}).items():
        if maps and count > 1:
            problems.add("stops", "images of one name with different endings, for one label map", name)
    if not any(scene.present for scene in scenes["train"]):
        problems.add("stops", "training sets without any object", places["train"][0])
    if stops := problems.lines("stops"):
        rest = problems.lines("repaired", "dropped", "note")
        raise UserError("\n  ".join([f"{root} cannot be trained on; nothing was written", *stops, *rest]))
    if "val" not in scenes:
        scenes["train"], scenes["val"] = _split(scenes["train"])
    for half, found in scenes.items():
        for name in sorted({*classes}.difference(BACKGROUNDS, *(scene.present for scene in found))):
            problems.add("note", f"classes without example in {half}", name)
    as_it_is = "val" in places and format in ("coco", "label-maps") and not problems.lines("repaired", "dropped")
    counts = ", ".join(f"{half} {len(found)} images" for half, found in scenes.items())
    print("\n".join([f"{format}, {len(classes)} classes, {counts}", *problems.lines("repaired", "dropped", "note")]))
    return OwnData(format, classes, palette, scenes, as_it_is)


def _places(root: Path, halves: Sequence[Pair], format: str | None) -> tuple[str, dict]:
    """The format, and annotations and images of each half."""
    if not halves:
        named = yolo_file(root)
        if not named or not named[1]["train"]:
            raise UserError(f"{root} has no data.yaml with train and names; give --train (and --val)")
        return "yolo", {half: (root, half) for half in ("train", "val") if named[1][half]}
    places = {half: (root / pair[0], root / pair[1]) for half, pair in zip(("train", "val"), halves)}
    for annotations, images in places.values():
        if not annotations.exists() or not images.is_dir():
            missing, what = (images, "folder") if annotations.exists() else (annotations, "annotation file")
            raise UserError(f"no {what} at {missing}; give its path relative to --data-root")
    path = places["train"][0]
    if path.is_file():
        found = ["voc" if path.suffix == ".txt" else "coco"]
    else:
        endings = {".xml": "voc", ".json": "labelme", ".txt": "yolo"}
        suffixes = {file.suffix for file in path.rglob("*") if file.name not in ("classes.txt", "labels.txt")}
        found = [name for ending, name in endings.items() if ending in suffixes]
        found = found or ["cvat" if (path.parent / "labelmap.txt").is_file() else "label-maps"]
    if len(found) > 1 and not format:
        raise UserError(f"{path} has files of several formats, {' and '.join(found)}; choose one by --format")
    return format or found[0], places


def _measure(path: Path) -> tuple[tuple[int, int], bool] | str:
    """Width and height, upright, and whether EXIF data turns the image; or what is wrong with it."""
    if not path.is_file():
        return "missing images"
    try:
        with open_regular(path) as file:
            size = upright_size(file)
            with Image.open(file) as image:
                turned = image.size != size
                image.draft(None, (1, 1))  # a JPEG is decoded at an eighth
                image.load()
        return size, turned
    except Exception:  # Pillow raises many types
        return "unreadable images"


def _check(scenes: list[Scene], classes: Sequence[str], problems: Problems, masks: bool) -> None:
    """Compare scenes with their files, repair and drop what can be, and fill in sizes and classes."""
    with ThreadPoolExecutor() as pool:
        for scene, found in zip(scenes, pool.map(_measure, [scene.image for scene in scenes])):
            if isinstance(found, str):
                problems.add("stops", found, scene.image)
                continue
            stated, (scene.size, turned) = scene.size, found
            if stated not in (None, scene.size):
                kind = "images of another size than annotated (use those; if only the sizes are wrong, remove them)"
                if turned and stated == scene.size[::-1]:
                    kind = "images annotated without their EXIF rotation (exiftool -Orientation= removes it)"
                problems.add("stops", kind, "{}, {}x{} instead of {}x{}".format(scene.image, *scene.size, *stated))
            if scene.labels:
                values = label_map(scene, classes, problems)
                scene.present = {classes[i] for i in np.unique(values) if i != 255} if values is not None else set()
                continue
            scene.objects = [one for one in scene.objects if _check_object(one, scene, classes, problems, masks)]
            scene.present = {one.name for one in scene.objects}
            if not scene.objects:
                problems.add("note", "images without objects", scene.image)


def _check_object(one: Object, scene: Scene, classes: Sequence[str], problems: Problems, masks: bool) -> bool:
    """Repair an object; False if it must be dropped."""
    where, (width, height) = f"{one.where} ({scene.image.name})", scene.size
    scale = scene.size if scene.normalized else (1, 1)
    if one.name not in classes:
        problems.add("stops", "objects of classes that are not listed", f"{one.name}, {where}")
    if isinstance(one.outline, list):
        good = [part for part in one.outline if _numbers(part) >= 6 and len(part) % 2 == 0]
        if len(good) < len(one.outline):
            problems.add("dropped", "polygons of fewer than 3 points", where)
            if masks and not good:
                return False
        one.outline = [[value * scale[i % 2] for i, value in enumerate(part)] for part in good]
    elif one.outline and [*one.outline.get("size", ())] != [height, width]:
        problems.add("stops", "masks of another size than the image", where)
        return False
    if masks and not one.outline:
        problems.add("stops", "objects without mask (add outlines; in detection, or use --boxes-only)", where)
    box = one.box
    if _numbers(box) != 4:
        kind = "boxes that are not 4 numbers"
        if one.box is not None:
            problems.add(*(("repaired", f"{kind}, taken from outlines") if one.outline else ("stops", kind)), where)
        if not one.outline:
            return False
        if isinstance(one.outline, list):
            points = np.concatenate([np.reshape(part, (-1, 2)) for part in one.outline])
            box, scale = [*points.min(0).tolist(), *np.ptp(points, 0).tolist()], (1, 1)
        else:
            box, scale = mask.toBbox(to_rle(one.outline, scene.size)).tolist(), (1, 1)
    x, y, right, bottom = (value * scale[i % 2] for i, value in enumerate((*box[:2], box[0] + box[2], box[1] + box[3])))
    left, top = max(x, 0), max(y, 0)
    one.box = [left, top, min(right, width) - left, min(bottom, height) - top]
    if min(one.box[2:]) < 1:
        problems.add("dropped", "boxes outside the image or under one pixel", f"{[*box]} of {where}")
    elif max(-x, -y, right - width, bottom - height) > 1:  # less is rounding
        problems.add("repaired", "boxes over the edge of the image, cut off", f"{[*box]} of {where}")
    return min(one.box[2:]) >= 1


def _numbers(values: object) -> int:
    """How many numbers a list has; 0 if it is something else, or holds something else."""
    good = isinstance(values, list | tuple) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    return len(values) if good else 0


def _split(scenes: list[Scene]) -> tuple[list[Scene], list[Scene]]:
    """Training and validation: the same at every call, and every class in both if two images have it."""
    order, val, covered = sorted(scenes, key=lambda scene: str(scene.image)), {}, set()
    np.random.default_rng(0).shuffle(order)
    left = Counter(name for scene in order for name in scene.present)  # images of each class in training
    for name in [*sorted(left, key=lambda name: (left[name], name)), None]:  # the rarest first, then any
        for scene in order:
            if name in covered or len(val) >= len(order) // 2 or (name is None and len(val) * 5 >= len(order)):
                break
            fits = scene not in val and all(left[other] > 1 for other in scene.present)
            if fits and (name is None or name in scene.present):
                left.subtract(scene.present)
                val[scene] = None
                covered |= scene.present
    if not val:
        raise UserError(f"{len(order)} images are too few to split a validation set off; give one by --val")
    return [scene for scene in order if scene not in val], [*val]


def to_rle(outline: list[list[float]] | dict, size: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of an outline in an image of a size (width, height)."""
    if isinstance(outline, dict) and not isinstance(outline["counts"], list):
        return outline
    parts = mask.frPyObjects(outline, size[1], size[0])
    return mask.merge(parts) if isinstance(parts, list) else parts


def label_map(scene: Scene, classes: Sequence[str], problems: Problems) -> np.ndarray | None:
    """The label map `(H, W)`, uint8, of a scene whose size is known; None, and a problem, if there is none."""
    if scene.labels is None:
        background = next(label for label, name in enumerate(classes) if name in BACKGROUNDS)
        values = np.full(scene.size[::-1], background, np.uint8)
        for one in scene.objects:  # later ones lie above
            values[mask.decode(to_rle(one.outline, scene.size)) > 0] = classes.index(one.name)
        return values
    if not scene.labels.is_file():
        problems.add("stops", "images without label map", f"{scene.image}: it should be {scene.labels}")
        return None
    try:
        with Image.open(scene.labels) as image:
            values = np.asarray(image if scene.colors is None else image.convert("RGB"))
    except Exception:  # Pillow raises many types
        values = np.zeros(0)
    if scene.colors is not None and values.ndim == 3:
        codes, places = np.unique(values.astype(np.int64) @ [1 << 16, 1 << 8, 1], return_inverse=True)
        values = np.array([scene.colors.get(code, 256) for code in codes.tolist()])[places].reshape(values.shape[:2])
    wrong = values[(values < 0) | ((values >= len(classes)) & (values != 255))]
    if values.ndim != 2 or values.dtype.kind == "f":
        problems.add("stops", "label maps that are not an image of one channel of integers", scene.labels)
    elif values.shape != scene.size[::-1]:
        sizes = "{}x{} instead of {}x{}".format(*values.shape[::-1], *scene.size)
        problems.add("stops", "label maps of another size than the image", f"{scene.labels}, {sizes}")
    elif wrong.size:
        what = f"label {wrong.max()}" if scene.colors is None else "a colour that labelmap.txt lacks"
        problems.add("stops", f"label maps with values beyond the {len(classes)} classes", f"{scene.labels}, {what}")
    else:
        return values.astype(np.uint8)
    return None
