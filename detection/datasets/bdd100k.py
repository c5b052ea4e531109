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
# Classes that are ignored, as the ones that they resemble; and other names: both as in BDD100K's toolkit.
_IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
_OTHER = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle", "caravan": "car", "van": "car"}
_NAMES = {**dict(zip(CLASSES, CLASSES)), **_IGNORED, **_OTHER}


def to_coco(labels: str | Path, images: str | Path) -> dict:
    """Return COCO's dictionary for a label file and the folder of its images, whose sizes are read.

    Raises `UserError`: a missing file, a class that BDD100K does not have, or another format.
    """
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": [], "annotations": [], "categories": categories}
    try:
        for number, frame in enumerate(json.loads(Path(labels).read_text(encoding="utf-8")), 1):
            width, height = upright_size(Path(images) / frame["name"])
            coco["images"].append({"id": number, "file_name": frame["name"], "width": width, "height": height})
            for label in frame.get("labels") or ():
                if not label.get("box2d"):  # lanes and drivable areas of 2018
                    continue
                x, y, right, bottom = (float(label["box2d"][key]) for key in ("x1", "y1", "x2", "y2"))
                crowd = label["category"] in _IGNORED or bool((label.get("attributes") or {}).get("crowd"))
                annotation = {"id": len(coco["annotations"]) + 1, "image_id": number, "iscrowd": int(crowd)}
                annotation |= {"bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y)}
                annotation["category_id"] = CLASSES.index(_NAMES[label["category"]]) + 1
                coco["annotations"].append(annotation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{labels} or its images are not BDD100K's ({reason}); give det_train.json, det_val.json"
        ) from None
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
