"""Draw the sampled locations and weights of the DCNv3 layers of a trained backbone over the image.

Like the receptive-field figures of InternImage (Wang et al., CVPR 2023), but exact: the coordinates that the operator
reads for one output pixel of one layer, not a composition over layers.
"""

import re
from argparse import ArgumentTypeError
from typing import NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from ops_dcnv3 import DCNv3, DCNv3_pytorch
from ops_dcnv3.reference import sampling_locations

from ..errors import UserError
from ..export.cores import layer_geometry

__all__ = [
    "SamplingPoints",
    "collect_points",
    "layer_points",
    "nearest_pixel",
    "pick_queries",
    "query_pixel",
    "sampling_figure",
]

STEM_STRIDE = 4


class SamplingPoints(NamedTuple):
    """The sampling points of a DCNv3 layer in pixels of the model's input (0 is the centre of the first pixel)."""

    stride: int  # image pixels from one output pixel of the layer to the next
    x: Tensor  # (Ho, Wo, G, P) columns
    y: Tensor  # (Ho, Wo, G, P) rows
    weight: Tensor  # (Ho, Wo, G, P), summing to 1 over the P points of a group
    undeformed_x: Tensor  # (Ho, Wo, P): the columns if all offsets were zero
    undeformed_y: Tensor  # (Ho, Wo, P)


def layer_points(layer: DCNv3, x_nhwc: Tensor, stride: int) -> SamplingPoints:
    """The sampling points of `layer` for the first image of its input `x_nhwc`, whose pixels are `stride` apart.

    The 3x3 convolutions of the stem and of the downsampling layers have stride 2 and padding 1, so that output pixel
    p is centred on input pixel 2p; through all of them, feature pixel p is centred on image pixel `stride` * p.
    """
    offset, mask_logits, _ = layer.sampling(x_nhwc[:1])
    geometry = layer_geometry(layer, mask_is_logits=True)
    x, y = sampling_locations(offset.float(), geometry)
    x0, y0 = sampling_locations(torch.zeros_like(offset, dtype=torch.float), geometry)
    weight = mask_logits.float().reshape(x.shape).softmax(-1)
    return SamplingPoints(
        stride * layer.stride,
        *(stride * values[0] for values in (x, y)),
        weight[0],
        *(stride * values[0, :, :, 0] for values in (x0, y0)),
    )


@torch.inference_mode()
def collect_points(model: nn.Module, image: Tensor, block: int = -1) -> list[SamplingPoints]:
    """Run `model` on one normalised image `(3, H, W)` and return the points of block `block` of each level.

    Raises:
        UserError: a model with another operator.
    """
    if other := {type(level.blocks[block].dcn) for level in model.levels} - {DCNv3, DCNv3_pytorch}:
        raise UserError(f"sampling points need DCNv3, but this model has {other.pop().__name__} layers")
    found: list[SamplingPoints] = []
    hooks = [
        level.blocks[block].dcn.register_forward_pre_hook(
            lambda layer, args, stride=STEM_STRIDE * 2**number: found.append(layer_points(layer, args[0], stride))
        )
        for number, level in enumerate(model.levels)
    ]
    training = model.training
    try:
        model.eval().forward_features(image[None])
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def nearest_pixel(points: SamplingPoints, query: tuple[float, float]) -> tuple[int, int]:
    """Column and row of the output pixel whose centre is nearest to image pixel `query`, an `(x, y)` pair."""
    rows, cols = points.x.shape[:2]
    col, row = (min(max(round(value / points.stride), 0), size - 1) for value, size in zip(query, (cols, rows)))
    return col, row


def pick_queries(rgb: Tensor, count: int = 3) -> list[tuple[int, int]]:
    """`(x, y)` pixels spread over the region that differs from the image's corners, starting at its middle.

    The outermost eighth of the image is excluded, because most sampling points would be outside.

    Args:
        rgb: `(H, W, 3)`, values 0 to 1.
        count: how many.
    """
    corners = rgb[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    height, width = rgb.shape[:2]
    inner = torch.zeros(height, width)
    inner[height // 8 : height - height // 8, width // 8 : width - width // 8] = 1
    contrast = (rgb - corners).abs().sum(-1) * inner
    # In an image of one colour this selects all inner pixels.
    y, x = (inner * (contrast >= contrast.max() / 3)).nonzero(as_tuple=True)
    candidates = torch.stack([x, y], 1).float()
    center = candidates.mean(0, keepdim=True)
    chosen = [int(torch.cdist(candidates, center).argmin())]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(candidates, candidates[chosen]).min(1).values.argmax()))
    return [(int(x[i]), int(y[i])) for i in chosen]


def query_pixel(text: str) -> tuple[float, float]:
    """The type of an option that names a pixel as X,Y."""
    if not re.fullmatch(r"\d{1,6}(\.\d*)?,\d{1,6}(\.\d*)?", text):
        raise ArgumentTypeError(f"{text} is not a pixel; give X,Y, as in 20,30")
    return tuple(map(float, text.split(",")))


def sampling_figure(rgb: Tensor, levels: list[SamplingPoints], queries: list[tuple[float, float]]) -> Figure:
    """One row per query, one column per level; the grid without offsets is drawn as small crosses.

    Args:
        rgb: the input image, `(H, W, 3)`, values 0 to 1.
        levels: from `collect_points`.
        queries: `(x, y)` image pixels; each level shows the nearest of its own pixels.
    """
    figure = Figure(figsize=(3.1 * len(levels), 3.1 * len(queries) + 0.9), dpi=150, layout="constrained")
    axes = figure.subplots(len(queries), len(levels), squeeze=False)
    for row, query in enumerate(queries):
        for col, points in enumerate(levels):
            _draw_query(axes[row, col], rgb, points, query)
            if row == 0:
                groups, taps = points.x.shape[2:]
                axes[row, col].set_title(
                    f"level {col + 1}, stride {points.stride}\n{groups} groups x {taps} points", fontsize=10
                )
        axes[row, 0].set_ylabel(f"query ({query[0]:.0f}, {query[1]:.0f})")
    marks = [
        Line2D([], [], marker="*", color="gold", markeredgecolor="black", markersize=13, linestyle=""),
        Line2D([], [], marker="o", color="tab:red", markersize=7, linestyle=""),
        Line2D([], [], marker="P", color="white", markeredgecolor="black", markersize=7, linestyle=""),
    ]
    labels = ["query pixel", "sampled point (colour: group, area: weight)", "kernel without offsets"]
    figure.legend(marks, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_query(axes: Axes, rgb: Tensor, points: SamplingPoints, query: tuple[float, float]) -> None:
    """Draw the sampling points of the output pixel nearest to `query`; outside the image (values 0) is grey."""
    col, row = nearest_pixel(points, query)
    x, y, weight = (values[row, col].cpu() for values in (points.x, points.y, points.weight))  # each (G, P)
    height, width = rgb.shape[:2]
    axes.imshow(rgb.cpu().numpy(), interpolation="nearest")
    center = (col * points.stride, row * points.stride)
    grid_x, grid_y = points.undeformed_x[row, col].cpu(), points.undeformed_y[row, col].cpu()
    for color, width_of_line in (("black", 3), ("white", 1)):  # visible on any image
        axes.scatter(grid_x, grid_y, marker="+", s=36, linewidths=width_of_line, color=color)
    colors = colormaps["tab20"](torch.arange(len(x)) % 20).repeat(x.shape[1], axis=0)
    # Area is proportional to the weight; 1/P, the weight at initialisation, is 36 square points.
    axes.scatter(x, y, s=36 * weight * weight.shape[1], color=colors, alpha=0.75, linewidths=0)
    axes.scatter(*center, marker="*", s=170, color="gold", edgecolors="black", zorder=5)
    # Two steps of the grid around the image, at most half its size; what lies further out is counted.
    room = min(2 * points.stride, width / 2, height / 2)
    left, right, top, bottom = -0.5 - room, width - 0.5 + room, -0.5 - room, height - 0.5 + room
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal", facecolor="0.85")
    beyond = (x < left) | (x > right) | (y < top) | (y > bottom)
    if beyond.any():
        share = float(weight[beyond].sum() / weight.sum())
        axes.set_xlabel(f"{share:.0%} of the weight is on points further out", fontsize=8)
