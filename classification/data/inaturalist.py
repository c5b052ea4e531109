"""iNaturalist 2018 with metadata, for the InternImage-H model with metadata heads.

Annotations are `train2018.json`, `val2018.json` (COCO style) and `train2018_locations.json`, `val2018_locations.json`.
"""

import json
import math
from pathlib import Path

import numpy as np

from internimage.errors import UserError

from .samples import Samples

__all__ = ["read_inat18", "spatial_vector", "temporal_vector"]


def temporal_vector(date: str | None) -> tuple[float, float, float, float]:
    """`[sin, cos]` of the month of `YYYY-MM-DD...` and two zeros (the hour, unused); zeros where missing."""
    try:
        month = int(date.split("-")[1])
    except (AttributeError, IndexError, ValueError):
        return 0.0, 0.0, 0.0, 0.0
    angle = 2 * math.pi * month / 12
    return math.sin(angle), math.cos(angle), 0.0, 0.0


def spatial_vector(latitude: float | None, longitude: float | None) -> tuple[float, float, float]:
    """The unit vector of a place given in degrees; zeros where missing.

    A coordinate of exactly 0 is treated as missing, as in the training of the released model.
    """
    if not latitude or not longitude:
        return 0.0, 0.0, 0.0
    lat, lon = math.radians(latitude), math.radians(longitude)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _load(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; inat18 expects it in --data-path") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; download it again") from None


def read_inat18(
    root: Path, split: str, class_index: dict[int, int] | None
) -> tuple[Samples, dict[int, int], list[str]]:
    """Samples, class index and class names of one split.

    Args:
        root: folder with the annotations, which image names are relative to.
        split: `train` or `val`.
        class_index: label of each category id; None: the order of the file's categories.

    Returns:
        Samples whose `extra` is temporal (n, 4) and spatial (n, 3), float32; the class index; names by label.
    """
    path = root / f"{split}2018.json"
    annotations, locations = _load(path), _load(root / f"{split}2018_locations.json")
    try:
        if class_index is None:
            class_index = {category["id"]: i for i, category in enumerate(annotations["categories"])}
        class_names = [str(category.get("name", category["id"])) for category in annotations["categories"]]
        file_names = {image["id"]: image["file_name"] for image in annotations["images"]}
        image_ids = [annotation["image_id"] for annotation in annotations["annotations"]]
        labels = [class_index[annotation["category_id"]] for annotation in annotations["annotations"]]
        names = [file_names[image_id] for image_id in image_ids]
        places = {place["id"]: place for place in locations}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} or its locations file lacks {error}; expected iNaturalist 2018's images, annotations, categories "
            "(and id, date, lat, lon of each image)"
        ) from None
    if not names:
        raise UserError(f"{path} has no annotations; download it again")
    if not (root / names[0]).is_file():
        raise UserError(f"{path} names {names[0]}, which is not in {root}; unpack the images there")
    found = [places.get(image_id, {}) for image_id in image_ids]
    temporal = np.array([temporal_vector(place.get("date")) for place in found], dtype=np.float32)
    spatial = np.array([spatial_vector(place.get("lat"), place.get("lon")) for place in found], dtype=np.float32)
    return Samples(root, names, labels, (temporal, spatial)), class_index, class_names
