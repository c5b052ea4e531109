"""Overlap and suppression of rotated boxes, in PyTorch, for any device: what mmdet3d's detectors call of mmcv."""

import torch
from torch import Tensor

__all__ = ["nms_rotated", "rotated_iou"]


def _corners(boxes: Tensor) -> Tensor:
    """The corners `(N, 4, 2)` of boxes `(N, 5)`: centre, width, height and angle in radians, turning one way."""
    centre, size, angle = boxes[:, None, :2], boxes[:, None, 2:4], boxes[:, 4, None]
    x, y = (size * boxes.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])).unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    return centre + torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _clipped_edges(of: Tensor, by: Tensor, closed: bool) -> Tensor:
    """Twice the area that the edges of `of` inside `by` sweep from the origin; both `(..., 4, 2)`, turning one way.

    An edge that lies on one of `by` counts only if `closed` and both run the same way.
    """
    start, along = of[..., :, None, :], (of.roll(-1, -2) - of)[..., :, None, :]
    side = (by.roll(-1, -2) - by)[..., None, :, :]
    # Along an edge the signed distance from a side of `by` is inside + t * slope: it is cut to first <= t <= last.
    inside, slope = _cross(side, start - by[..., None, :, :]), _cross(side, along)
    cut = -inside / torch.where(slope == 0, 1, slope)
    first = torch.where(slope > 0, cut, 0).amax(-1).clamp(0, 1)
    last = torch.where(slope < 0, cut, 1).amin(-1).clamp(0, 1)
    on_it = (inside == 0) & ((not closed) | ((side * along).sum(-1) < 0))
    outside = (slope == 0) & ((inside < 0) | on_it)
    length = torch.where(outside.any(-1), 0, (last - first).clamp(min=0))
    return (length * _cross(of, along[..., 0, :])).sum(-1)


def rotated_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of rotated boxes.

    The border of the intersection is what lies of each box's border inside the other; Green's theorem gives the area.

    Args:
        boxes1, boxes2: `(N, 5)`: centre x and y, width, height, angle in radians.

    Returns:
        `(N,)`, pairs in order, float64.
    """
    boxes1, boxes2 = boxes1.double(), boxes2.double()
    centre = torch.cat([boxes1[:, :2], torch.zeros_like(boxes1[:, 2:])], 1)  # products stay small near the origin
    a, b = _corners(boxes1 - centre), _corners(boxes2 - centre)
    overlap = (_clipped_edges(a, b, True) + _clipped_edges(b, a, False)).clamp(min=0) / 2
    areas = boxes1[:, 2:4].prod(1) + boxes2[:, 2:4].prod(1)
    return overlap / (areas - overlap).clamp(min=torch.finfo(torch.float64).eps)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices of the boxes `(N, 5)` that are kept, by falling score: none overlaps a better one by more."""
    order = scores.argsort(descending=True)
    boxes = boxes[order].double()
    reach, area = boxes[:, 2:4].norm(dim=1) / 2, boxes[:, 2:4].prod(1)
    # Only these pairs can overlap enough: the ratio of their areas bounds it.
    near = torch.cdist(boxes[:, :2], boxes[:, :2]) <= reach[:, None] + reach
    alike = torch.minimum(area[:, None], area) > iou_threshold * torch.maximum(area[:, None], area)
    better, worse = (near & alike).triu(1).nonzero().unbind(1)
    overlaps = torch.zeros_like(near)
    for i, j in zip(better.split(65536), worse.split(65536)):  # 130 MB at a time
        overlaps[i, j] = rotated_iou(boxes[i], boxes[j]) > iou_threshold
    overlaps, kept = overlaps.cpu(), torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if kept[i]:
            kept &= ~overlaps[i]
    return order[kept.to(order.device)]
