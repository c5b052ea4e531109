"""Draw the first training images with their boxes and masks, after the training pipeline.

    python detection/browse_dataset.py CONFIG [--out data_set.png] [--count 12]

A look at this picture shows whether images, annotations and class names belong together.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import internimage.mm  # noqa: F401 # isort: skip - before mmdet
import numpy as np
from matplotlib.axes import Axes
from mmdet.structures import DetDataSample

from detection.demo.pictures import draw_objects
from internimage.mm.browse import browse_dataset

__all__ = ["draw_annotations"]


def draw_annotations(axis: Axes, image: np.ndarray, sample: DetDataSample, metainfo: dict) -> dict:
    """Draw an image `(H, W, 3)`, RGB uint8, with its objects; their names are at the boxes, so no legend is needed."""
    objects = sample.gt_instances
    labels = objects.labels.tolist()
    masks = objects.masks.to_ndarray().astype(bool) if "masks" in objects else []
    names = [metainfo["classes"][label] for label in labels]
    draw_objects(axis, image, objects.bboxes.tensor.numpy(), masks, labels, names)
    return {}


if __name__ == "__main__":
    browse_dataset(draw_annotations)
