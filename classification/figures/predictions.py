"""Figures of a classifier: a grid of predictions, the training curve."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

__all__ = ["prediction_grid", "training_curve"]


def prediction_grid(images: list[Tensor], truths: list[int], probabilities: Tensor, names: list[str]) -> Figure:
    """A grid of images with the predicted classes: green if correct, red with the true class if wrong.

    Args:
        images: `(H, W, 3)` each, values 0 to 1.
        truths: the class of each.
        probabilities: `(images, classes)`.
        names: of the classes.
    """
    columns = 10
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.75 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    confidence, predicted = probabilities.max(1)
    right = 0
    for axis, image, truth, guess, sure in zip(axes.flat, images, truths, predicted.tolist(), confidence.tolist()):
        axis.imshow(image.numpy())
        correct = guess == truth
        right += correct
        color = "tab:green" if correct else "tab:red"
        for spine in axis.spines.values():
            spine.set(color=color, linewidth=3)
        caption = f"{names[guess]} {sure:.0%}" + ("" if correct else f"\nis {names[truth]}")
        axis.set_xlabel(caption, fontsize=8, color=color)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis in axes.flat[len(images) :]:
        axis.set_visible(False)
    figure.suptitle(f"{right} of these {len(images)} validation images right (predicted class and its probability)")
    return figure


def training_curve(history: list[dict[str, float]]) -> Figure:
    """Losses (left) and top-1 accuracy of the validation set (right) over the epochs that were finished."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, keys in (
        (left, {"train_loss": "training (with augmentation and label smoothing)", "val_loss": "validation"}),
        (right, {"top1": "validation", "top1_ema": "validation, averaged weights"}),
    ):
        for key, label in keys.items():
            points = [(record["epoch"] + 1, record[key]) for record in history if key in record]
            if points:
                axes.plot(*zip(*points), marker="o", label=label)
        axes.set_xlabel("epochs")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    left.set_ylabel("cross entropy")
    right.set_ylabel("top-1 accuracy (%)")
    return figure
