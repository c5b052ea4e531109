"""BDD100K (Yu et al., 2020): convert its detection labels (det_20) to COCO's format.

    python detection/datasets/bdd100k.py labels/det_20/det_train.json images/100k/train annotations/det_train.json

Boxes of `other person`, `other vehicle` and `trailer`, which are not among the ten classes, and those marked as a crowd
become `iscrowd`, which is neither trained on nor counted as a miss.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from detection.datasets.crowd_human import write_coco
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.images import upright_size

__all__ = ["CLASSES", "to_coco"]

CLASSES = (
    *("pedestrian", "rider", "car", "truck", "bus", "train"),
    *("motorcycle", "bicycle", "traffic light", "traffic sign"),
)
# Names of the labels of 2018, and the classes that the ignored ones resemble.
_OLD = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle"}
_IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}


def to_coco(labels: str | Path, images: str | Path) -> dict:
    """Return COCO's dictionary for a label file and the folder of its images, whose sizes are read.

    Raises `UserError`: a missing file, a class that BDD100K does not have, or another format.
    """
    labels, images = Path(labels), Path(images)
    known = {name: (name, False) for name in CLASSES} | {old: (new, False) for old, new in _OLD.items()}
    known |= {name: (like, True) for name, like in _IGNORED.items()}
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": [], "annotations": [], "categories": categories}
    try:
        for number, frame in enumerate(json.loads(labels.read_text(encoding="utf-8")), 1):
            if not (images / frame["name"]).is_file():
                raise UserError(f"no image {frame['name']} in {images}, which {labels} needs; unpack the 100K images")
            width, height = upright_size(images / frame["name"])
            coco["images"].append({"id": number, "file_name": frame["name"], "width": width, "height": height})
            for label in frame.get("labels") or ():
                if not label.get("box2d"):  # lanes and drivable areas of 2018
                    continue
                if label["category"] not in known:
                    raise UserError(f"{labels} has the class {label['category']!r}; known are {', '.join(known)}")
                (name, ignored), attributes = known[label["category"]], label.get("attributes") or {}
                x, y, right, bottom = (float(label["box2d"][key]) for key in ("x1", "y1", "x2", "y2"))
                annotation = {"id": len(coco["annotations"]) + 1, "image_id": number}
                annotation |= {"category_id": CLASSES.index(name) + 1, "bbox": [x, y, right - x, bottom - y]}
                annotation["area"] = (right - x) * (bottom - y)
                annotation["iscrowd"] = int(ignored or bool(attributes.get("crowd")))
                coco["annotations"].append(annotation)
    except OSError as error:
        raise UserError(f"cannot read {labels}: {error.strerror}; give det_train.json or det_val.json") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{labels} is not in BDD100K's format ({error!r}); expected a list of frames") from None
    return coco


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the command line and convert one file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", help="BDD100K's det_train.json or det_val.json")
    parser.add_argument("images", help="folder with the images")
    parser.add_argument("out", type=Path, help="COCO file to write")
    args = parser.parse_args(argv)
    write_coco(to_coco(args.labels, args.images), args.out, "objects")


if __name__ == "__main__":
    main()
