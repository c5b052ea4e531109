r"""Draw the sampling points of a model.

    python classification/pictures.py --cfg classification/configs/demo.yaml \
        --checkpoint output/demo/ckpt_epoch_best.pth --images data/fashion_mnist/val/Bag/0003.png --output pictures

Writes sampling_points_<folder>_<image>.png. Curves and predictions are in the report that a training leaves.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from matplotlib.figure import Figure
from torch import Tensor

from classification.figures.sampling_points import collect_points, pick_queries, sampling_figure
from classification.inference import Classifier, add_model_arguments, load_classifier, read_image
from internimage.errors import ArgumentParser, exit_on_user_error
from internimage.figures import save_figure

__all__ = ["draw_sampling_points"]


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
    parser.add_argument("--images", "--image", metavar="FILE", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--query", metavar="X,Y", type=_query, nargs="+", default=(), help="query pixels (of the model's input)"
    )
    args = parser.parse_args(argv)

    classifier = load_classifier(args)
    for name in args.images:
        image = classifier.transform(read_image(name))
        figure = draw_sampling_points(classifier, image, f"{name.parent.name}/{name.name}", args.query)
        save_figure(figure, args.output / f"sampling_points_{name.parent.name}_{name.stem}.png")


if __name__ == "__main__":
    main()
