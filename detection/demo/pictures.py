"""Draw the true and the detected objects of composites.

    python detection/demo/pictures.py CONFIG CHECKPOINT [--out detections.png]

Pictures and true objects are the first of the configuration's test data; rows of truth and of detections alternate.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import internimage.mm  # noqa: F401 # isort: skip - before mmdet
import mmcv
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmdet.apis import inference_detector
from mmengine.registry import DATASETS
from pycocotools import mask as coco_mask

from internimage.errors import exit_on_user_error
from internimage.figures import save_figure
from internimage.mm.checks import check_data_files, read_config
from internimage.mm.predictor import load_model

__all__ = ["draw_objects", "grid"]

COLUMNS = 8
COUNT = 16  # pictures
THRESHOLD = 0.5  # lowest score drawn


def draw_objects(
    axis: Axes, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, labels: list[int], texts: list[str]
) -> None:
    """Draw an image with its objects.

    Args:
        axis: to draw on.
        image: `(H, W, 3)`, RGB uint8.
        boxes: `(N, 4)`, corners x1, y1, x2, y2 in pixels.
        masks: `(N, H, W)`, bool.
        labels: class of each, which decides its colour.
        texts: written at each box.
    """
    shown = image / 255.0
    for mask, label in zip(masks, labels):
        shown[mask] = 0.35 * shown[mask] + 0.65 * np.array(colormaps["tab10"](label)[:3])
    axis.imshow(shown, extent=(0, image.shape[1], image.shape[0], 0))
    for (left, top, right, bottom), label, text in zip(boxes, labels, texts):
        color = colormaps["tab10"](label)
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, linewidth=1.2))
        style = {"facecolor": color, "edgecolor": "none", "pad": 0.6}
        axis.text(max(left, 0), max(top, 5), text, fontsize=6, color="white", va="bottom", bbox=style, clip_on=True)
    axis.set(xticks=[], yticks=[], xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))


def grid(config_path: str, checkpoint: str) -> Figure:
    """The figure of this module."""
    config = read_config(config_path)
    check_data_files(config, ("test",))
    model = load_model(config, checkpoint)
    names = model.dataset_meta["classes"]
    dataset = DATASETS.build(config.test_dataloader.dataset)
    count = min(COUNT, len(dataset))
    rows = 2 * -(-count // COLUMNS)
    figure = Figure(figsize=(1.75 * COLUMNS, 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index in range(count):
        information = dataset.get_data_info(index)
        bgr = mmcv.imread(information["img_path"])
        image = bgr[..., ::-1]
        above, below = (axes[2 * (index // COLUMNS) + row, index % COLUMNS] for row in (0, 1))
        true = information["instances"]
        labels = [instance["bbox_label"] for instance in true]
        masks = [coco_mask.decode(instance["mask"]).astype(bool) for instance in true]
        boxes = [instance["bbox"] for instance in true]
        draw_objects(above, image, boxes, masks, labels, [names[label] for label in labels])
        found = inference_detector(model, bgr).pred_instances
        found = found[found.scores >= THRESHOLD].numpy()
        texts = [f"{names[label]} {score:.2f}" for label, score in zip(found.labels, found.scores)]
        draw_objects(below, image, found.bboxes, found.masks, found.labels.tolist(), texts)
        for axis in (above, below):
            axis.axis("on")
        if index % COLUMNS == 0:
            above.set_ylabel("truth")
            below.set_ylabel("found")
    return figure


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("checkpoint", help="path of the weights")
    parser.add_argument("--out", type=Path, default=Path("detections.png"))
    args = parser.parse_args()
    save_figure(grid(args.config, args.checkpoint), args.out)


if __name__ == "__main__":
    main()
