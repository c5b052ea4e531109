"""Draw the first test images of a detector or segmentor: rows of the truth and of what the model finds alternate.

python demo/pictures.py CONFIG CHECKPOINT [--output found.png]
"""

import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import internimage.mm  # noqa: F401 # isort: skip - before mmdet and mmseg
import numpy as np
from matplotlib.figure import Figure
from mmengine.registry import DATASETS
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from internimage.errors import ArgumentParser, exit_on_user_error
from internimage.figures import save_figure
from internimage.mm.checks import check_data_files, read_config
from internimage.mm.predictor import MMPredictor, load_model
from internimage.results import Result, SegmentationResult

__all__ = ["main"]

COLUMNS, COUNT = 6, 12  # images
THRESHOLD = 0.5  # lowest score drawn


def _truth(dataset: Dataset, index: int, found: Result) -> Result:
    """The annotations of an image in the form of `found`, the model's result."""
    if isinstance(found, SegmentationResult):
        return replace(found, labels=dataset[index]["data_samples"].gt_sem_seg.data[0].numpy())
    true = dataset.get_data_info(index)["instances"]
    labels = [instance["bbox_label"] for instance in true]
    return replace(
        found,
        boxes=np.array([instance["bbox"] for instance in true]),
        scores=np.ones(len(true)),
        labels=np.array(labels),
        names=[dataset.metainfo["classes"][label] for label in labels],
        masks=[coco_mask.decode(instance["mask"]).astype(bool) for instance in true],
    )


def _grid(config_path: str, checkpoint: str) -> Figure:
    """The figure of this module."""
    config = read_config(config_path)
    check_data_files(config, ("test",))
    model = MMPredictor(load_model(config, checkpoint))
    dataset = DATASETS.build(config.test_dataloader.dataset)
    count = min(COUNT, len(dataset))
    rows = 2 * -(-count // COLUMNS)
    figure = Figure(figsize=(2.6 * COLUMNS, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for index in range(count):
        (found,) = model.predict(dataset.get_data_info(index)["img_path"], threshold=THRESHOLD)
        row, column = divmod(index, COLUMNS)
        for axis, result in zip(axes[2 * row :, column], (_truth(dataset, index, found), found)):
            axis.imshow(result.plot())
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], visible=bool(axis.images))
    for row in range(rows):
        axes[row, 0].set_ylabel("found" if row % 2 else "truth")
    return figure


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("checkpoint", help="path of the weights")
    file = {"type": Path, "default": Path("found.png"), "help": "picture to write; default: %(default)s"}
    parser.add_argument("--output", "--out", **file)
    args = parser.parse_args(argv)
    save_figure(_grid(args.config, args.checkpoint), args.output)


if __name__ == "__main__":
    main()
