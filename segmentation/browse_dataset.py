"""Draw the first training images beside their label maps, after the training pipeline.

    python segmentation/browse_dataset.py CONFIG [--out data_set.png] [--count 12]

A look at this picture shows whether images, label maps and class names belong together.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import internimage.mm  # noqa: F401 # isort: skip - before mmseg
import numpy as np
from matplotlib.axes import Axes
from mmseg.structures import SegDataSample

from internimage.mm.browse import browse_dataset
from segmentation.demo.pictures import IGNORED, colored

__all__ = ["draw_labels"]


def draw_labels(axis: Axes, image: np.ndarray, sample: SegDataSample, metainfo: dict) -> dict:
    """Draw an image `(H, W, 3)`, RGB uint8, beside its label map; returns the classes in it with their colours."""
    labels = sample.gt_sem_seg.data[0].numpy()
    axis.imshow(np.hstack([image, colored(labels, metainfo["palette"])]))
    named = dict(enumerate(zip(metainfo["classes"], metainfo["palette"])))
    return dict(named.get(label, ("ignored", IGNORED)) for label in np.unique(labels).tolist())


if __name__ == "__main__":
    browse_dataset(draw_labels)
