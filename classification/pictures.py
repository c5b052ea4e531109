r"""Draw the sampling points of a model.

    python classification/pictures.py --cfg classification/configs/demo.yaml \
        --checkpoint output/demo/ckpt_epoch_best.pth --output output/demo/pictures

Writes sampling_points_<class>_<image>.png for some validation images, or for the images of --image. Curves and
predictions are in the report that a training leaves in its folder.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from classification.data.loader import ImageDataset
from classification.data.splits import open_splits
from classification.figures.sampling_points import collect_points, pick_queries, sampling_figure
from classification.inference import Classifier, add_model_arguments, load_classifier, read_image
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.figures import save_figure

__all__ = ["validation_images", "draw_sampling_points"]

IMAGES = 4


def validation_images(classifier: Classifier) -> tuple[list[Tensor], list[str]]:
    """The first images of some classes of the validation set: normalised images and their file names."""
    config = classifier.config.clone()
    config.defrost()
    config.EVAL_MODE = True
    samples = open_splits(config, print).val
    count = len(classifier.class_names)
    if samples.labels.max() >= count:
        raise UserError(f"{config.DATA.DATA_PATH} has more classes than the model's {count}; check DATA.DATA_PATH")
    dataset = ImageDataset(samples, classifier.transform, substitute=False)
    present = np.unique(samples.labels).tolist()
    order = [(samples.labels == label).nonzero()[0][0] for label in present[:: -(-len(present) // IMAGES)]]
    return [dataset[index][0] for index in order], [samples.name(index) for index in order]


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
        "--image", metavar="FILE", type=Path, nargs="+", help="draw the sampling points on these images"
    )
    parser.add_argument(
        "--query", metavar="X,Y", type=_query, nargs="+", default=(), help="query pixels (of the model's input)"
    )
    args = parser.parse_args(argv)

    classifier = load_classifier(args)
    if args.image:
        names = list(args.image)
        images = [classifier.transform(read_image(path)) for path in names]
    else:
        images, names = validation_images(classifier)
    for image, name in zip(images, map(Path, names)):
        figure = draw_sampling_points(classifier, image, f"{name.parent.name}/{name.name}", args.query)
        save_figure(figure, args.output / f"sampling_points_{name.parent.name}_{name.stem}.png")


if __name__ == "__main__":
    main()
