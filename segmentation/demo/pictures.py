"""Draw images, their true label maps and the predicted ones side by side.

    python segmentation/demo/pictures.py CONFIG CHECKPOINT [--out label_maps.png]

Images and label maps are the first of the configuration's test data.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import internimage.mm  # noqa: F401 # isort: skip - before mmseg
import mmcv
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.registry import DATASETS
from mmseg.apis import inference_model

from internimage.errors import exit_on_user_error
from internimage.figures import save_figure
from internimage.mm.checks import check_data_files, read_config
from internimage.mm.predictor import load_model

__all__ = ["colored", "grid"]

COUNT = 15  # images
TRIPLES = 3  # in a row
IGNORED = (255, 255, 255)


def colored(labels: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    """A label map `(H, W)` as a picture `(H, W, 3)`, RGB uint8; white where it has no class of the palette."""
    colors = np.full((256, 3), IGNORED, np.uint8)
    colors[: len(palette)] = palette
    return colors[labels]


def grid(config_path: str, checkpoint: str) -> Figure:
    """The figure of this module."""
    config = read_config(config_path)
    check_data_files(config, ("test",))
    model = load_model(config, checkpoint)
    names, palette = model.dataset_meta["classes"], model.dataset_meta["palette"]
    dataset = DATASETS.build(config.test_dataloader.dataset)
    count = min(COUNT, len(dataset))
    rows = -(-count // TRIPLES)
    figure = Figure(figsize=(4.5 * TRIPLES, 1.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, 3 * TRIPLES, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index in range(count):
        truth = dataset[index]["data_samples"]
        bgr = mmcv.imread(truth.img_path)
        found = inference_model(model, bgr).pred_sem_seg.data[0].numpy()
        maps = [colored(labels, palette) for labels in (truth.gt_sem_seg.data[0].numpy(), found)]
        row, column = divmod(index, TRIPLES)
        for axis, picture, title in zip(
            axes[row, 3 * column :], (bgr[..., ::-1], *maps), ("image", "truth", "prediction")
        ):
            axis.imshow(picture)
            if row == 0:
                axis.set_title(title, fontsize=10)
    patches = [Patch(facecolor=np.divide(color, 255), label=name) for name, color in zip(names, palette)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8), frameon=False)
    return figure


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("checkpoint", help="path of the weights")
    parser.add_argument("--out", type=Path, default=Path("label_maps.png"))
    args = parser.parse_args(argv)
    save_figure(grid(args.config, args.checkpoint), args.out)


if __name__ == "__main__":
    main()
