r"""Draw pictures of a training run: predictions on the validation set, the training curve and the sampling points.

    python classification/pictures.py --cfg classification/configs/demo.yaml \
        --checkpoint output/demo/ckpt_epoch_best.pth --output output/demo/pictures

Writes predictions.png, training_curve.png (if history.jsonl is in the checkpoint's folder) and
sampling_points_<class>_<image>.png for some validation images, or for those of --images.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from classification.data.loader import ImageDataset
from classification.data.splits import open_splits
from classification.figures.predictions import prediction_grid, training_curve
from classification.figures.sampling_points import collect_points, pick_queries, sampling_figure
from classification.inference import Classifier, add_model_arguments, load_classifier, read_image
from classification.trainer.tracking import read_history
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.figures import save_figure

__all__ = ["validation_images", "draw_sampling_points"]

CLASSES, PER_CLASS = 10, 5


def validation_images(classifier: Classifier) -> tuple[list[Tensor], list[int], list[str]]:
    """The first images of some classes of the validation set: normalised images, their classes, their file names.

    The order is one image of each class, `PER_CLASS` times: a column of the grid shows one class.
    """
    config = classifier.config.clone()
    config.defrost()
    config.EVAL_MODE = True
    samples = open_splits(config, print).val
    count = len(classifier.class_names)
    if samples.labels.max() >= count:
        raise UserError(f"{config.DATA.DATA_PATH} has more classes than the model's {count}; check DATA.DATA_PATH")
    dataset = ImageDataset(samples, classifier.transform, substitute=False)
    present = np.unique(samples.labels).tolist()
    chosen = present[:: -(-len(present) // CLASSES)]
    indices = [(samples.labels == label).nonzero()[0][:PER_CLASS].tolist() for label in chosen]
    order = [column[row] for row in range(PER_CLASS) for column in indices if row < len(column)]
    images, labels = zip(*(dataset[index][:2] for index in order))
    return list(images), list(labels), [samples.name(index) for index in order]


def draw_sampling_points(
    classifier: Classifier, image: Tensor, title: str, queries: Sequence[tuple[float, float]] = ()
) -> Figure:
    """The sampling points of the last block of each level for `queries` (defaults to `pick_queries`).

    Args:
        classifier: the model.
        image: normalised, `(3, H, W)`.
        title: above the figure.
        queries: `(x, y)` pixels of `image`.
    """
    rgb = classifier.to_rgb(image)
    levels = collect_points(classifier.model, image.to(classifier.device))
    return sampling_figure(rgb, levels, list(queries) or pick_queries(rgb), title)


def _query(text: str) -> tuple[float, float]:
    x, y = map(float, text.split(","))
    if not math.isfinite(x + y):
        raise ValueError(text)
    return x, y


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        *("--images", "--image"), metavar="FILE", type=Path, nargs="+", help="draw the sampling points on these images"
    )
    parser.add_argument(
        "--query", metavar="X,Y", type=_query, nargs="+", default=(), help="query pixels (of the model's input)"
    )
    args = parser.parse_args(argv)

    classifier = load_classifier(args)
    if args.images:
        names = list(args.images)
        images = [classifier.transform(read_image(path)) for path in names]
    else:
        images, labels, names = validation_images(classifier)
        probabilities = classifier.logits(torch.stack(images)).softmax(1)
        rgb = [classifier.to_rgb(image) for image in images]
        save_figure(
            prediction_grid(rgb, labels, probabilities, classifier.class_names), args.output / "predictions.png"
        )
        images, names = images[:CLASSES:3], names[:CLASSES:3]  # every third column of the grid
    for image, name in zip(images, map(Path, names)):
        figure = draw_sampling_points(classifier, image, f"{name.parent.name}/{name.name}", args.query)
        save_figure(figure, args.output / f"sampling_points_{name.parent.name}_{name.stem}.png")
    history = Path(args.checkpoint).with_name("history.jsonl") if args.checkpoint else None
    if history and history.is_file():
        save_figure(training_curve(read_history(history, print)), args.output / "training_curve.png")


if __name__ == "__main__":
    main()
