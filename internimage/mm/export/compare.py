"""The errors of exported detectors and segmentors against PyTorch."""

import math

import torch
from torch import Tensor

from internimage.export.spec import Outputs

__all__ = ["detection_error", "matched_detections", "segmentation_error"]


def detection_error(actual: Outputs, expected: Outputs, threshold: float = 0.0) -> tuple[float, float]:
    """The largest error of two sets of detections, in the outputs' units, and with boxes relative to the picture.

    Detections are paired by label, box and score, nearest first; the masks of a pair are also compared. The error of an
    unpaired one is its score minus `threshold`, below which the detector reports nothing, or, if the other side is
    full, minus the lowest score there.
    """
    if not all(output.isfinite().all() for output in (*actual, *expected)):
        return math.inf, math.inf
    absolute = relative = 0.0
    for image in range(expected[0].shape[0]):
        sides = [[output[image].float() for output in side] for side in (actual, expected)]
        for found, others in (sides, sides[::-1]):
            far = _unpaired(found, others, threshold)
            absolute, relative = max(absolute, far), max(relative, far)
        exact, shares = _paired(*sides)
        absolute, relative = max(absolute, exact), max(relative, shares)
    return absolute, relative


def _distances(found: list[Tensor], others: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Distances of all pairs `(F, O)`, absolute and relative to the picture; infinite where labels differ."""
    (boxes, labels), (other_boxes, other_labels) = found[:2], others[:2]
    difference = (boxes[:, None] - other_boxes[None]).abs()
    largest = torch.cat([boxes, other_boxes])[:, :4].max().clamp(min=1)
    shares = torch.maximum(difference[..., :4].amax(-1) / largest, difference[..., 4])
    apart = (labels[:, None] != other_labels[None]) | (labels[:, None] < 0)
    return difference.amax(-1).masked_fill(apart, float("inf")), shares.masked_fill(apart, float("inf"))


def matched_detections(actual: Outputs, expected: Outputs) -> tuple[int, int]:
    """The number of expected detections that `detection_error` pairs, and of all expected ones."""
    matched = 0
    for image in range(expected[0].shape[0]):
        sides = [[output[image].float() for output in side] for side in (expected, actual)]
        matched += int((_distances(*sides)[1].min(1)[0] < _NEAR).sum())
    return matched, int((expected[1] >= 0).sum())


_NEAR = 0.01  # relative to the picture, and of a score: pairs farther apart are different detections


def _paired(found: list[Tensor], others: list[Tensor]) -> tuple[float, float]:
    exact, shares = _distances(found, others)
    nearest, index = shares.min(1)
    near = nearest < _NEAR
    if not near.any():
        return 0.0, 0.0
    masks = [(mask[near] - other[index[near]]).abs().max().item() for mask, other in zip(found[2:], others[2:])]
    absolute = exact.gather(1, index[:, None])[:, 0][near].max().item()
    return max(absolute, *masks, 0.0), max(nearest[near].max().item(), *masks, 0.0)


def _unpaired(found: list[Tensor], others: list[Tensor], threshold: float) -> float:
    """The largest error of the first side's unpaired detections."""
    alone = (found[1] >= 0) & (_distances(found, others)[1].min(1)[0] >= _NEAR)
    if not alone.any():
        return 0.0
    full = (others[1] >= 0).all()
    floor = others[0][:, 4].min().item() if full else threshold
    return max(found[0][alone, 4].max().item() - floor, 0.0)


def segmentation_error(actual: Outputs, expected: Outputs) -> tuple[float, float]:
    """The largest difference of scores; and the larger of it and the share of pixels whose labels differ."""
    differing = (actual[0] != expected[0]).double().mean().item()
    scores = (actual[1].double() - expected[1].double()).abs().max().item()
    scores = scores if scores == scores else math.inf
    return scores, max(scores, differing)
