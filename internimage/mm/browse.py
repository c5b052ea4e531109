"""`browse_dataset.py`: what a training sees of a data set, in one picture, before hours are spent on it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import DictAction
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import set_random_seed

from ..errors import UserError, exit_on_user_error
from .checks import check_data_files, explained, explained_empty, merge_options, read_config

__all__ = ["Draw", "browse_dataset", "data_figure"]

COLUMNS = 4

# Draws an image `(H, W, 3)`, RGB uint8, with the annotations of its data sample (of a data set with this metainfo) on
# axes, and returns the names and colours, RGB 0 to 255, that need a legend.
Draw = Callable[[Axes, np.ndarray, object, dict], dict[str, Sequence[int]]]


def data_figure(dataset: Sequence[dict], draw: Draw, count: int) -> Figure:
    """Draw the first `count` items of a data set, as its pipeline gives them to the model."""
    count = min(count, len(dataset))
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(layout="constrained")
    legend: dict[str, Sequence[int]] = {}
    aspect = 0.0  # height over width, of the tallest picture
    for index, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axis.axis("off")
        if index >= count:
            continue
        item = dataset[index]
        sample = item["data_samples"]
        image = item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1]  # (3, H, W), BGR
        legend |= draw(axis, image.clip(0, 255).astype(np.uint8), sample, dataset.metainfo)
        axis.set_title(f"{Path(sample.img_path).name}, {image.shape[1]} x {image.shape[0]}", fontsize=8)
        drawn_height, drawn_width = axis.images[0].get_size()
        aspect = max(aspect, drawn_height / drawn_width)
    figure.set_size_inches(4 * columns, rows * (4 * aspect + 0.3) + 0.5)
    if legend:
        patches = [Patch(facecolor=np.divide(color, 255), label=name) for name, color in legend.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8))
    return figure


@exit_on_user_error
def browse_dataset(draw: Draw, argv: Sequence[str] | None = None) -> None:
    """`browse_dataset.py CONFIG`: write a picture of the first images of the training data."""
    parser = argparse.ArgumentParser(description="Draw the first images of the training data.")
    parser.add_argument("config", help="configuration file")
    parser.add_argument("--out", type=Path, default=Path("data_set.png"), help="picture to write")
    parser.add_argument("--count", type=int, default=12, help="how many images")
    parser.add_argument("--seed", type=int, default=0, help="of what the pipeline does at random")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to change")
    args = parser.parse_args(argv)
    if args.count < 1:
        raise UserError(f"--count {args.count}: give at least 1")
    config = read_config(args.config)
    merge_options(config, args.cfg_options)
    check_data_files(config, ("train",))
    init_default_scope(config.get("default_scope", "mmengine"))
    set_random_seed(args.seed)
    with explained():
        with explained_empty("train"):
            dataset = DATASETS.build(config.train_dataloader.dataset)
        if len(dataset) == 0:
            raise UserError("train_dataloader has no image")
        figure = data_figure(dataset, draw, args.count)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    print(f"{len(dataset)} training images; the first {min(args.count, len(dataset))} are drawn to {args.out}")
