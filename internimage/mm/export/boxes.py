"""Boxes in exported detectors: anchors, decoding, suppression and pooling, with shapes that do not depend on values.

mmdet's own post-processing selects by lists of indices, image by image, which exporters do not support. Here every
image has a fixed number of candidates; rejected ones have score 0. Faster R-CNN (Ren et al., 2015).
"""

import math

import torch
import torchvision
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor, nn

from internimage.errors import UserError

__all__ = [
    "best",
    "clip",
    "decode",
    "level_anchors",
    "picture_sizes",
    "pool_regions",
    "suppress",
    "suppress_all",
    "take",
]


def picture_sizes(images: Tensor) -> Tensor:
    """Width and height of each picture in a padded batch `(N, 3, H, W)`, `(N, 2)`.

    Padding, at the right and at the bottom, is exactly zero; a whole row or column of a normalised picture never is,
    since the mean is not an integer.
    """
    used = images.abs().amax(1)
    sizes = []
    for dim in (1, 2):
        edge = used.amax(dim)  # over the rows: one number per column, and the reverse
        length = edge.shape[1]
        last = ((edge > 0) * torch.arange(1, length + 1, device=images.device)).amax(1)
        sizes.append(torch.where(last > 0, last, length))
    return torch.stack(sizes, 1).float()


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Move boxes `(N, ..., 4)` into pictures of `sizes` `(N, 2)`."""
    limits = torch.cat([sizes, sizes], 1).reshape(-1, *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def decode(coder: nn.Module, boxes: Tensor, deltas: Tensor, sizes: Tensor) -> Tensor:
    """Apply a head's deltas `(N, ..., 4)` to boxes (x1, y1, x2, y2) of the same shape."""
    if type(coder) is not DeltaXYWHBBoxCoder or coder.add_ctr_clamp or not coder.clip_border:
        raise UserError(f"cannot export the box coder {coder}; supported: DeltaXYWHBBoxCoder with its defaults")
    deltas = deltas.float()
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    limit = abs(math.log(16 / 1000))
    extent = boxes[..., 2:] - boxes[..., :2]
    center = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + extent * deltas[..., :2]
    half = extent * deltas[..., 2:].clamp(-limit, limit).exp() * 0.5
    return clip(torch.cat([center - half, center + half], -1), sizes)


def level_anchors(generator: AnchorGenerator, level: int, feature: Tensor) -> Tensor:
    """Anchors of one level for a map `(N, C, H, W)`, `(H * W * A, 4)`, rows first."""
    base = generator.base_anchors[level].to(feature.device)
    step_x, step_y = generator.strides[level]
    height, width = feature.shape[2:]
    x = torch.arange(width, device=feature.device) * step_x
    y = torch.arange(height, device=feature.device) * step_y
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    shifts = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def take(values: Tensor, index: Tensor) -> Tensor:
    """The rows `index` `(N, K)` of `values` `(N, M, D)`, `(N, K, D)`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of `scores` `(N, M)`, falling, and their indices; score 0 and index 0 where M is smaller."""
    scores, index = torch.nn.functional.pad(scores, (0, count), value=-1.0).topk(count, dim=1)
    return scores.clamp(min=0), torch.where(scores < 0, 0, index)


@torch.library.custom_op("internimage::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """Non-maximum suppression in every class of every image: 1 where a box is kept, otherwise 0, `(B, C, M)`.

    Args:
        boxes: `(B, M, 4)`.
        scores: `(B, C, M)`; 0 for boxes to ignore.
        iou: boxes that overlap a better one by more are rejected.
        most: largest number of boxes kept per class.
    """
    keep = torch.zeros_like(scores)
    for image, image_scores in enumerate(scores):
        for label, row in enumerate(image_scores):
            candidates = row.nonzero()[:, 0]
            kept = torchvision.ops.nms(boxes[image, candidates].float(), row[candidates].float(), iou)[:most]
            keep[image, label, candidates[kept]] = 1
    return keep


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    return torch.empty_like(scores)


def suppress_all(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """`suppress` by one call of torchvision's operator, for compilers.

    `most` is ignored: the detector takes no more than that in all from the result. Classes and images are moved apart,
    in double precision, so that moving them loses nothing.
    """
    images, classes, count = scores.shape
    flat = scores.flatten()
    index = flat.nonzero()[:, 0]
    group = torch.div(index, count, rounding_mode="floor")
    own = boxes.double().flatten(0, 1)[torch.div(group, classes, rounding_mode="floor") * count + index % count]
    own = own + group[:, None] * (boxes.double().amax() + 1)
    # Compilers assume at least two kept boxes: these two, away from all others, are always kept.
    corner = torch.arange(-4, 0, 2, dtype=own.dtype, device=own.device)
    away = torch.stack([corner, corner, corner + 1, corner + 1], 1)
    rest = torch.full_like(away[:, 0], -1.0)
    kept = torchvision.ops.nms(torch.cat([own, away]), torch.cat([flat[index].double(), rest]), iou)
    end = flat.shape[0]  # len() would fix it
    index = torch.cat([index, torch.full_like(rest, end, dtype=index.dtype)])[kept]
    return flat.new_zeros(end + 1).index_fill(0, index, 1.0)[:end].view_as(scores)


def pool_regions(extractor: nn.Module, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """RoIAlign of boxes `(N, K, 4)`, each on the level of its size, `(N * K, C, h, w)`.

    Every level pools all boxes; boxes of other levels are moved outside the map, where the result is zero. Boxes and
    pooling are float32, since half types would move boxes by pixels.
    """
    count = boxes.shape[1]
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    image = image[:, None].expand(-1, count).reshape(-1, 1)
    boxes = boxes.reshape(-1, 4)
    extent = boxes[:, 2:] - boxes[:, :2]
    levels = len(extractor.roi_layers)
    level = torch.log2((extent[:, 0] * extent[:, 1]).sqrt() / extractor.finest_scale + 1e-6).floor()
    level = level.clamp(0, levels - 1)
    outside = boxes.new_tensor([-1e4, -1e4, -1e4 + 1, -1e4 + 1])
    output = 0.0
    for index, (layer, feature) in enumerate(zip(extractor.roi_layers, features)):
        rois = torch.where((level == index)[:, None], boxes, outside)
        output = output + torch.ops.torchvision.roi_align(
            feature.float(),
            torch.cat([image, rois], 1),
            layer.spatial_scale,
            *layer.output_size,
            layer.sampling_ratio,
            layer.aligned,
        )
    return output.to(features[0].dtype)
