"""One scene in every annotation format: `tiny_coco`'s images, whose first object is a triangle here."""

import base64
import io
import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from pycocotools import mask
from tiny_coco import CLASSES, HEIGHT, WIDTH, make_data

COLORS = {"background": (0, 0, 0), "red": (250, 50, 83), "green": (51, 221, 255)}


def rewrite(path: Path, change) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def scene(folder: Path, images: int = 4) -> tuple[Path, dict]:
    """The data in COCO's format, `instances.json` and `images/`; also returned as content."""
    make_data(folder, images)
    content = json.loads((folder / "instances.json").read_text())
    for one in content["annotations"][::2]:
        x, y, width, height = one["bbox"]
        one["segmentation"] = [[x, y, x + width, y, x, y + height]]
        one["area"] = width * height / 2
    (folder / "instances.json").write_text(json.dumps(content))
    return folder, content


def names_of(content: dict) -> dict[int, str]:
    return {category["id"]: category["name"] for category in content["categories"]}


def objects(content: dict):
    """Of each image: its name, and (class, box, polygon) of its objects."""
    names = names_of(content)
    for image in content["images"]:
        found = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        yield image["file_name"], [(names[o["category_id"]], o["bbox"], o["segmentation"][0]) for o in found]


def label_maps(content: dict, classes: tuple[str, ...] = ("background", *CLASSES)):
    """Of each image: its name and label map."""
    for name, found in objects(content):
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        for label, _, polygon in found:
            values[mask.decode(mask.merge(mask.frPyObjects([polygon], HEIGHT, WIDTH))) > 0] = classes.index(label)
        yield name, values


def to_yolo(folder: Path, content: dict, *, boxes: bool = False) -> None:
    """`labels/*.txt` beside `images/`, with polygons or boxes, and `data.yaml`."""
    (folder / "labels").mkdir()
    for name, found in objects(content):
        lines = []
        for label, (x, y, w, h), polygon in found:
            values = [x + w / 2, y + h / 2, w, h] if boxes else polygon
            scaled = [value / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(values)]
            lines.append(" ".join(map(str, [CLASSES.index(label), *scaled])))
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text("train: images\nnames:\n  0: red\n  1: green\n")


def to_voc(folder: Path, content: dict) -> None:
    """`Annotations/*.xml` and CVAT's `labelmap.txt`, which gives the order of the classes."""
    (folder / "Annotations").mkdir()
    for name, found in objects(content):
        parts = "".join(
            f"<object><name>{escape(label)}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h), _ in found
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{parts}"
        (folder / "Annotations" / name).with_suffix(".xml").write_text(f"{text}</annotation>")
    table = "\n".join(f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in COLORS.items())
    (folder / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{table}\n")


def to_labelme(folder: Path, content: dict) -> None:
    """`json/*.json` with polygons, rectangles and one mask, and `labels.txt`."""
    (folder / "json").mkdir()
    for number, (name, found) in enumerate(objects(content)):
        shapes = []
        for label, (_, _, w, h), polygon in found:
            points = np.reshape(polygon, (-1, 2)).tolist()
            kind = "polygon" if len(points) == 3 else "rectangle"
            shape = {"label": label, "shape_type": kind, "points": points[:: 1 if kind == "polygon" else 2]}
            if kind == "rectangle" and number == 0:
                file = io.BytesIO()
                Image.fromarray(np.full((h, w), 255, np.uint8)).save(file, "PNG")
                shape |= {"shape_type": "mask", "mask": base64.b64encode(file.getvalue()).decode()}
            shapes.append({**shape, "group_id": None})
        file = {"imagePath": f"..\\images\\{name}", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes}
        (folder / "json" / name).with_suffix(".json").write_text(json.dumps(file))
    (folder / "json/labels.txt").write_text("__ignore__\nred\ngreen\n")


def to_cvat(folder: Path, content: dict) -> None:
    """`SegmentationClass/*.png` in colours and `labelmap.txt`."""
    (folder / "SegmentationClass").mkdir()
    colors = np.array([*COLORS.values()], np.uint8)
    for name, values in label_maps(content):
        Image.fromarray(colors[values]).save(folder / "SegmentationClass" / name)
    table = "\n".join(f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in COLORS.items())
    (folder / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\n{table}\n")


def to_label_maps(folder: Path, content: dict) -> None:
    """`labels/*.png` and `classes.json`."""
    (folder / "labels").mkdir()
    for name, values in label_maps(content):
        Image.fromarray(values).save(folder / "labels" / name)
    (folder / "classes.json").write_text(json.dumps({"classes": ["background", *CLASSES]}))


WRITERS = {
    **{"coco": lambda folder, content: None, "yolo": to_yolo, "voc": to_voc, "labelme": to_labelme},
    **{"cvat": to_cvat, "label-maps": to_label_maps},
}
ANNOTATIONS = {
    **{"coco": "instances.json", "yolo": "labels", "voc": "Annotations", "labelme": "json"},
    **{"cvat": "SegmentationClass", "label-maps": "labels"},
}


def make(folder: Path, format: str, images: int = 4) -> tuple[Path, dict]:
    """The scene in one format alone: the folder, and the content in COCO's."""
    root, content = scene(folder, images)
    WRITERS[format](root, content)
    if format != "coco":
        (root / "instances.json").unlink()
    return root, content


def copy_as_val(root: Path, format: str) -> tuple[str, str]:
    """A second copy of the annotations and images, for validation."""
    name = ANNOTATIONS[format]
    target = root / "val" / name
    target.parent.mkdir()
    shutil.copytree(root / "images", root / "val/images")
    if (root / name).is_dir():
        shutil.copytree(root / name, target)
        for other in ("labelmap.txt", "data.yaml"):
            if (root / other).exists():
                shutil.copy(root / other, root / "val" / other)
    else:
        shutil.copy(root / name, target)
    return f"val/{name}", "val/images"
