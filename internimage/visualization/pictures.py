"""Draw what a model sees in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ..backbone import InternImage
from ..errors import UserError
from ..figures import render
from ..predictor import Predictor
from ..results import ClassificationResult, Result
from ..sources import iter_images
from .maps import effective_receptive_field, grad_cam, principal_components
from .sampling_points import STEM_STRIDE, collect_points, pick_queries, sampling_figure

__all__ = ["visualize"]


class Seen(NamedTuple):
    """One image in a model."""

    backbone: InternImage
    input: Tensor  # of the backbone, (1, C, H, W)
    rgb: Tensor  # the same as (H, W, 3), values 0 to 1
    result: Result
    queries: list[tuple[float, float]]


def visualize(
    model: Predictor, images: object, *, queries: Sequence[tuple[float, float]] = ()
) -> dict[str, Image.Image]:
    """Draw what a model sees: `visualize(internimage.load(NAME), "photo.jpg")["feature_pca"].save("pca.png")`.

    Every picture has a column for each level of the backbone. A line is printed about one that the model cannot have.

    - `sampling_points`: where the level's last DCNv3 reads;
    - `mask_weights`: how many of its points count at each pixel, and the mean weights of each group;
    - `feature_pca`: the first three principal components of the level's output as red, green and blue;
    - `class_activation`: Grad-CAM of a classifier's most probable class; needs captum;
    - `effective_receptive_field`: gradients of the middle of the output (Luo et al., 2016), averaged over all images.

    Args:
        model: from `internimage.load`. Of detectors and segmentors the backbone is shown, with the input that it gets.
        images: what `Predictor.predict` takes. Names of several images are as in `0_photo_feature_pca`.
        queries: `(x, y)` pixels of the model's input for `sampling_points`; defaults to three on the object.

    Raises:
        UserError: an image that cannot be read; a backbone that is not one InternImage.
    """
    backbone, pictures, seen = getattr(model.model, "backbone", model.model), {}, []
    if not isinstance(backbone, InternImage):
        raise UserError(f"visualize needs a model with InternImage or FlashInternImage; got {type(backbone).__name__}")
    if not (given := list(iter_images(images))):
        raise UserError("no images to visualize; give at least one")
    for number, picture in enumerate(given):
        inputs = []
        with backbone.patch_embed.register_forward_pre_hook(lambda stem, args, to=inputs: to.append(args[0])):
            (result,) = model.predict(picture.image)
        image = inputs[0][:1].clone()
        seen.append(Seen(backbone, image, model.to_rgb(image[0].cpu()), result, list(queries)))
        prefix = f"{number}_{Path(picture.source).stem}_" if len(given) > 1 else ""
        for draw in (sampling_points, mask_weights, feature_pca, class_activation):
            try:
                pictures[prefix + draw.__name__] = render(draw(seen[-1]))
            except UserError as error:
                print(f"no picture {draw.__name__}: {error}")
    return pictures | {"effective_receptive_field": render(receptive_field(seen))}


def sampling_points(seen: Seen) -> Figure:
    queries = seen.queries or pick_queries(seen.rgb)
    return sampling_figure(seen.rgb, collect_points(seen.backbone, seen.input[0]), queries)


def mask_weights(seen: Seen) -> Figure:
    weights = [points.weight.float().cpu() for points in collect_points(seen.backbone, seen.input[0])]
    counts = [torch.special.entr(weight).sum(-1).exp().mean(-1) for weight in weights]  # as if of equal weights
    figure, axes = _panels("Mask weights of DCNv3", seen.rgb, len(weights), rows=2)
    for number, (weight, count) in enumerate(zip(weights, counts)):
        groups, taps = weight.shape[2:]
        above = _draw_map(axes[0, number], seen.rgb, count, number, vmin=min(map(torch.min, counts)), vmax=taps)
        below = axes[1, number].imshow(_kernels(taps * weight.mean((0, 1))), cmap="RdBu_r", vmin=0, vmax=2)
        axes[1, number].set_title(f"{groups} groups x {taps} points", fontsize=9)
        axes[1, number].set(anchor="N", frame_on=False)
    figure.colorbar(above, ax=axes[0], label="effective number of points", aspect=15)
    figure.colorbar(below, ax=axes[1], label="mean weight / uniform weight", aspect=15, extend="max")
    return figure


def _kernels(weight: Tensor) -> np.ndarray:
    """Weights `(G, P)` as a picture of G square kernels, with gaps."""
    groups, taps = weight.shape
    side, columns = (int(np.ceil(np.sqrt(number))) for number in (taps, groups))
    middle = torch.full((groups, side**2 - taps), torch.nan)  # of a kernel without its centre
    weight = torch.cat([weight[:, : taps // 2], middle, weight[:, taps // 2 :]], 1) if taps < side**2 else weight
    kernels = torch.full((columns * -(-groups // columns), side + 1, side + 1), torch.nan)
    kernels[:groups, :side, :side] = weight.unflatten(1, (side, side)).mT  # points run down the columns
    return kernels.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1].numpy()


def feature_pca(seen: Seen) -> Figure:
    with torch.no_grad():
        features = seen.backbone.forward_intermediates(seen.input, output_fmt="NHWC", intermediates_only=True)
    figure, axes = _panels("First three principal components of the features", seen.rgb, len(features))
    for number, (axis, feature) in enumerate(zip(axes[0], features)):
        colors, share = principal_components(feature[0])
        _draw_map(axis, seen.rgb, colors, number)
        axis.set_xlabel(f"{share:.0%} of the variance", fontsize=9)
    return figure


def class_activation(seen: Seen) -> Figure:
    if not isinstance(seen.result, ClassificationResult):
        raise UserError("it needs a classifier")
    maps = grad_cam(seen.backbone, seen.input, int(seen.result.labels[0]))
    title = f"Class activation (Grad-CAM): {seen.result.names[0]} ({seen.result.scores[0]:.1%})"
    figure, axes = _panels(title, seen.rgb, len(maps))
    options = {"cmap": "turbo", "vmin": 0, "vmax": 1, "alpha": 0.55, "interpolation": "bilinear"}
    for number, (axis, values) in enumerate(zip(axes[0], maps)):
        axis.imshow(seen.rgb.mean(-1), cmap="gray", vmin=0, vmax=1)
        drawn = _draw_map(axis, seen.rgb, values / values.max().clamp(min=1e-12), number, **options)
    figure.colorbar(drawn, ax=axes, label="activation / maximum", aspect=15)
    return figure


def receptive_field(seen: list[Seen]) -> Figure:
    backbone, size = seen[0].backbone, [min(one.input.shape[axis] for one in seen) for axis in (2, 3)]
    fields = zip(*(effective_receptive_field(backbone, center_crop(one.input, size)) for one in seen))
    image = torch.stack([center_crop(one.rgb.permute(2, 0, 1), size) for one in seen]).mean(0).permute(1, 2, 0)
    title = f"Effective receptive field of the middle pixel{f', mean of {len(seen)} images' * (len(seen) > 1)}"
    figure, axes = _panels(title, image, len(backbone.levels))
    for number, (axis, of_images) in enumerate(zip(axes[0], fields)):
        field, stride = torch.stack(of_images).mean(0).cpu(), STEM_STRIDE * 2**number
        drawn = axis.imshow(field / field.max().clamp(min=1e-30), cmap="magma", norm="log", vmin=1e-3, vmax=1)
        axis.set_facecolor("black")  # zeros have no logarithm
        y, x = (-(-length // stride) // 2 * stride for length in size)
        sides = [_side_around(field, y, x, share) for share in (0.5, 0.95)]
        for side, style in zip(sides, ("-", "--")):
            axis.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, linestyle=style, color="w"))
        axis.set_xlabel("50% in {} pixels, 95% in {}".format(*sides), fontsize=9)
    figure.colorbar(drawn, ax=axes, label="gradient / maximum", aspect=15)
    return figure


def _side_around(field: Tensor, y: int, x: int, share: float) -> int:
    """The side of the smallest square around (x, y) that holds a share of the sum of `field` `(H, W)`."""
    rows, columns = ((torch.arange(length) - center).abs() for length, center in zip(field.shape, (y, x)))
    inside = torch.bincount(torch.maximum(rows[:, None], columns).flatten(), field.double().flatten()).cumsum(0)
    return 2 * int((inside < share * inside[-1]).sum()) + 1


def _panels(title: str, rgb: Tensor, levels: int, rows: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure with the input `(H, W, 3)` and then a column for each level; the axes of the levels."""
    figure = Figure(figsize=(2.6 * levels + 3.2, 2.7 * rows + 0.3), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, levels + 1, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    axes[0, 0].imshow(rgb)
    axes[-1, 0].set_visible(rows == 1)
    for number, axis in enumerate(axes[0]):
        axis.set_title(f"level {number}, stride {STEM_STRIDE * 2 ** (number - 1)}" if number else "input", fontsize=10)
    return figure, axes[:, 1:]


def _draw_map(axis: Axes, rgb: Tensor, values: Tensor, number: int, **options: object) -> object:
    """Draw a map `(H', W')` or `(H', W', 3)` of a level where it lies in the image: pixel p is at `stride` * p."""
    stride, (height, width) = STEM_STRIDE * 2**number, rgb.shape[:2]
    pixels = np.pad(values.cpu(), ((0, 1), (0, 1), *[(0, 0)] * (values.ndim - 2)), "edge")  # to the image's edges
    right, bottom = ((length - 0.5) * stride for length in pixels.shape[1::-1])
    drawn = axis.imshow(pixels, extent=(-0.5 * stride, right, bottom, -0.5 * stride), **options)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return drawn
