"""Readers of annotations. Each takes annotations and images, and returns the class names in the order of their labels
(None: the format has no list) with a `Scene` for each image."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask

from ...errors import UserError
from ...sources import image_files

__all__ = ["READERS", "Object", "Problems", "Scene", "color_table", "read_classes", "yolo_file"]


@dataclass(eq=False)
class Object:
    """An annotated object."""

    name: str  # of its class
    box: Sequence[float] | None  # x, y, width, height in pixels; None: that of the outline
    outline: list[list[float]] | dict | None  # polygons [x, y, x, y, ...] or COCO's run lengths
    where: str  # its place in the annotations, for messages
    crowd: bool = False  # COCO's iscrowd, VOC's difficult: neither learnt nor an error if found


@dataclass(eq=False)
class Scene:
    """An image with its objects or its label map."""

    image: Path
    size: tuple[int, int] | None = None  # width and height as annotated; after the check, of the upright image
    objects: list[Object] = field(default_factory=list)
    normalized: bool = False  # coordinates are fractions of the size
    labels: Path | None = None  # its label map
    colors: dict[int, int] | None = None  # the class of each colour r << 16 | g << 8 | b; None: values are classes
    present: set[str] = field(default_factory=set)  # names of its classes; filled in by the check


class Problems(dict):
    """What is wrong with a data set: the number of each kind and the first, by consequence and kind."""

    def add(self, consequence: str, kind: str, example: object) -> None:
        """Count a problem; `consequence` is "stops", "repaired", "dropped" or "note"."""
        self.setdefault((consequence, kind), [0, example])[0] += 1

    def lines(self, *consequences: str) -> list[str]:
        """A line for each kind with one of these consequences, in their order."""
        keys = sorted((key for key in self if key[0] in consequences), key=lambda key: consequences.index(key[0]))
        return ["{}: {}: {}, first {}".format(*key, *self[key]) for key in keys]


Found = tuple[list[str] | None, list[Scene]]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _by_stem(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in image_files(folder)}


def _read_coco(path: Path, images: Path, problems: Problems) -> Found:
    """Objects of COCO's JSON. Raises `UserError` if it is something else, has no categories, or one twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, scenes, seen = {one["id"]: one["name"] for one in content["categories"]}, {}, {None}
        for one in content["images"]:
            size = one.get("width"), one.get("height")
            if not all(size):
                problems.add("repaired", "images without width or height", one["file_name"])
            if one["id"] in scenes:
                problems.add("stops", "image ids that are not unique", f"{one['id']} in {path}")
            scenes[one["id"]] = Scene(images / one["file_name"], size if all(size) else None)
        for one in content["annotations"]:
            key, name = one.get("id"), names.get(one["category_id"], f"category {one['category_id']}")
            where, crowd = f"annotation {key} of {path}", bool(one.get("iscrowd"))
            if one["image_id"] not in scenes:
                problems.add("stops", "annotations of images that are not listed", f"image {one['image_id']}, {where}")
                continue
            if key in seen:
                problems.add("repaired", "annotation ids missing or not unique", where)
            if "area" not in one or "iscrowd" not in one:
                problems.add("repaired", "annotations without area or iscrowd", where)
            seen.add(key)
            outline, objects = one.get("segmentation") or None, scenes[one["image_id"]].objects
            objects.append(Object(name, one.get("bbox", ()), outline, where, crowd))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not in COCO's format ({error!r}); it needs images, annotations, categories"
        ) from error
    classes = [*names.values()]
    if not classes or len({*map(str, classes)}) < len(content["categories"]):
        raise UserError(f"{path} has no categories, or one twice; every category needs a name and an id of its own")
    return classes, [*scenes.values()]


def yolo_file(folder: Path) -> tuple[Path, dict] | None:
    """The file of class names in a folder (`data.yaml`, `classes.txt`, `obj.names`) and its content.

    The content has `names`, and as `train` and `val` lists of folders or of lists of images, or None.
    """
    for file in [*sorted(folder.glob("*.y*ml")), folder / "classes.txt", folder / "obj.names"]:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{file} is not readable ({' '.join(str(error).split())}); correct it") from error
        if isinstance(content, str):  # of a plain list, YAML makes one text
            content = {"names": _lines(file)}
        if isinstance(content, dict) and content.get("names"):
            halves = {"train": content.get("train"), "val": content.get("val") or content.get("valid")}
            return file, content | {half: [it] if isinstance(it, str) else it for half, it in halves.items()}
    return None


def _yolo_images(file: Path, content: dict, half: str) -> Iterator[Path]:
    """The images of a half in `data.yaml`."""
    root = file.parent / (content.get("path") or "")
    root = root if root.is_dir() else file.parent
    for entry in content[half]:
        places = root / entry, root / entry.removeprefix("../")  # Roboflow writes ../train/images
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"{file} names {places[0]}, which does not exist; correct its {half} or path")
        yield from image_files(place) if place.is_dir() else (root / line for line in _lines(place))


def _read_yolo(path: Path, images: Path | str, problems: Problems) -> Found:
    """Objects of a folder of texts, or of the half `images` of the `data.yaml` in the folder `path`.

    Their lines are `class x y width height`, or `class` and the points of a polygon, as fractions of the image.
    """
    named = next(filter(None, map(yolo_file, [path, *path.parents][:4])), None)
    if named is None:
        raise UserError(f"{path} has no class names: write classes.txt, one a line")
    names = named[1]["names"]
    if "kpt_shape" in named[1]:
        raise UserError(f"{path} has keypoints (kpt_shape): export boxes")
    classes = [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    if isinstance(images, str):
        parts = [image.as_posix().rpartition("/images/") for image in _yolo_images(*named, images)]
        texts = {Path("".join(part)): Path(part[0] + (part[1] and "/labels/") + part[2]) for part in parts}
    else:
        texts = {image: path / image.relative_to(images) for image in image_files(images)}
    for labels, folder in {text.parent: image.parent for image, text in texts.items()}.items():
        stems = {file.stem for file in folder.iterdir()} | {"classes", "_darknet", "train", "val", "test"}
        for file in sorted(labels.glob("*.txt")):
            if file.stem not in stems:
                problems.add("note", "annotations without image", file)
    objects = {image: _yolo_objects(text.with_suffix(".txt"), classes, problems) for image, text in texts.items()}
    return classes, [Scene(image, None, [*found], normalized=True) for image, found in objects.items()]


def _yolo_objects(file: Path, classes: list[str], problems: Problems) -> Iterator[Object]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ()
    for number, line in enumerate(lines, 1):
        try:
            label, *values = [float(word) for word in line.split()] or [0.0]
        except ValueError:
            label, values = 0.0, [0.0]
        if max(values, default=0) > 2:
            problems.add("stops", "coordinates in pixels, not as fractions of the image", f"line {number} of {file}")
        elif len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0):
            name = classes[int(label)] if label in range(len(classes)) else f"class {label:g}"
            x, y, width, height = values[:4]
            box = (x - width / 2, y - height / 2, width, height) if len(values) == 4 else None
            yield Object(name, box, None if box else [values], f"line {number} of {file}")
        elif values:
            problems.add("stops", "lines of neither 4 numbers nor at least 3 points", f"line {number} of {file}")


def color_table(file: Path) -> dict[str, list[int]]:
    """Classes and colours of a `labelmap.txt`, of lines `name:red,green,blue:parts:actions`."""
    try:
        rows = [line.split(":") for line in _lines(file) if not line.startswith("#")]
        return {name: [int(value) for value in color.split(",")] for name, color, *_ in rows}
    except (ValueError, OSError) as error:
        raise UserError(f"{file} must have lines name:red,green,blue:: ({error}); export it again") from error


def _read_voc(path: Path, images: Path, problems: Problems) -> Found:
    """Boxes of a folder of XML files, or of those that a list in `ImageSets/Main` names; coordinates start from 0."""
    folder = path.parents[2] / "Annotations" if path.is_file() else path
    files = [folder / f"{line.split()[0]}.xml" for line in _lines(path)] if path.is_file() else folder.rglob("*.xml")
    table, stems, scenes = folder.parent / "labelmap.txt", _by_stem(images), []  # the table is CVAT's
    for file in sorted(files):
        try:
            tree = ElementTree.parse(file)
            size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
        except (ElementTree.ParseError, OSError, ValueError) as error:
            problems.add("stops", "unreadable annotation files", f"{file} ({error})")
            continue
        image = stems.get(file.relative_to(folder).with_suffix("").as_posix(), images / f"{file.stem}.jpg")
        scenes.append(Scene(image, size if all(size) else None))
        for number, one in enumerate(tree.iter("object"), 1):
            try:
                x, y, right, bottom = (float(one.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax"))
                box = (x, y, right - x, bottom - y)
            except ValueError:
                box = ()
            where, crowd = f"object {number} of {file}", one.findtext("difficult") == "1"
            scenes[-1].objects.append(Object(one.findtext("name", ""), box, None, where, crowd))
    return [name for name in color_table(table) if name != "background"] if table.is_file() else None, scenes


def _read_labelme(path: Path, images: Path, problems: Problems) -> Found:
    """Outlines of a folder of JSON files; shapes of one label and `group_id` are one object."""
    scenes, names = [], path / "labels.txt"
    for file in sorted(path.rglob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            size = content["imageWidth"], content["imageHeight"]
            scene, groups = Scene(images / content["imagePath"].replace("\\", "/").rpartition("/")[2], size), {}
            for number, shape in enumerate(content["shapes"], 1):
                where, group = f"shape {number} of {file}", shape.get("group_id")
                outline = _labelme_outline(shape, size)
                if outline is None:
                    problems.add("dropped", "LabelMe's points, lines, circles and __ignore__", where)
                    continue
                key = shape["label"], number if group is None or isinstance(outline, dict) else f"group {group}"
                one = groups.setdefault(key, Object(shape["label"], None, [], where))
                one.outline = outline if isinstance(outline, dict) else one.outline + outline
            scene.objects += groups.values()
            scenes.append(scene)
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            problems.add("stops", "unreadable annotation files", f"{file} ({error!r})")
    classes = _lines(names) if names.is_file() else None
    return classes and [name for name in classes if name not in ("__ignore__", "_background_")], scenes


def _labelme_outline(shape: dict, size: tuple[int, int]) -> list[list[float]] | dict | None:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind not in ("polygon", "rectangle", "mask") or shape["label"] == "__ignore__":
        return None
    if kind == "polygon":
        return [[value for point in points for value in point]]
    (x, y), (right, bottom) = points
    if kind == "rectangle":
        return [[x, y, right, y, right, bottom, x, bottom]]
    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
    whole = np.zeros(size[::-1], np.uint8, order="F")
    whole[int(y) :, int(x) :][: part.shape[0], : part.shape[1]] = part
    rle = mask.encode(whole)
    return rle | {"counts": rle["counts"].decode()}


def read_classes(path: str | Path) -> dict[str, list]:
    """Read the file of class names and colours: `{"classes": [...], "palette": [[r, g, b], ...] or []}`.

    Raises:
        UserError: no such file, or its content is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no classes at {path}; write {{"classes": [names], "palette": [[red, green, blue], ...]}}')
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes, palette = [*content["classes"]], [[*color] for color in content.get("palette", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} must be JSON with "classes" and optionally "palette" ({error!r})') from error
    count = len({name for name in classes if isinstance(name, str)})
    if count < len(classes) or not 0 < count < 256:
        raise UserError(f"{path}: classes must be names, 1 to 255, each of them once; got {classes[:9]}")
    good = all(len(color) == 3 and all(value in range(256) for value in color) for color in palette)
    if not good or len(palette) not in (0, count):
        raise UserError(f"{path}: palette must have one [red, green, blue] (0 to 255) for each of {count} classes")
    return {"classes": classes, "palette": palette}


def _read_maps(path: Path, images: Path, problems: Problems) -> Found:
    """Images, and label maps `.png` of the same names whose values are the classes."""
    names = [file.relative_to(images) for file in image_files(images)]
    stems = {name.with_suffix("") for name in names}
    for file in sorted(path.rglob("*.png")):
        if file.relative_to(path).with_suffix("") not in stems:
            problems.add("note", "label maps without image", file)
    return None, [Scene(images / name, labels=path / name.with_suffix(".png")) for name in names]


def _read_cvat(path: Path, images: Path, problems: Problems) -> Found:
    """Coloured label maps and images of the same names, with the colours in `labelmap.txt` beside the folder."""
    table, stems = color_table(path.parent / "labelmap.txt"), _by_stem(images)
    colors = {red << 16 | green << 8 | blue: label for label, (red, green, blue) in enumerate(table.values())}
    colors.setdefault(224 << 16 | 224 << 8 | 192, 255)  # VOC's border between objects is ignored
    labels = _by_stem(path).items()
    return [*table], [Scene(stems.get(key, images / f"{key}.jpg"), labels=file, colors=colors) for key, file in labels]


READERS = {
    **{"coco": _read_coco, "yolo": _read_yolo, "voc": _read_voc, "labelme": _read_labelme},
    **{"cvat": _read_cvat, "label-maps": _read_maps},
}
