"""Large images tile by tile: objects of several tiles become one, logits are averaged where tiles overlap."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData, PixelData

__all__ = ["infer_tiles"]


def infer_tiles(
    infer: Callable[[np.ndarray], object], image: np.ndarray, tile: int, overlap: float, threshold: float
) -> object:
    """The data sample of an image `(H, W, 3)` whose tiles are given to `infer`, as if it were that of the whole image.

    Args:
        infer: gives the data sample of a part of the image.
        image: of any size.
        tile: side of the square tiles in pixels; `infer` may resize them.
        overlap: least share of neighbouring tiles; the last ones end with the image.
        threshold: lowest score of an object.
    """
    rows, columns = (_starts(length, tile, overlap) for length in image.shape[:2])
    parts, total = [], None
    labels = torch.zeros(image.shape[:2], dtype=torch.int64)
    for row, after in zip(rows, [*rows[1:], image.shape[0]]):
        for column in columns:
            sample = infer(image[row : row + tile, column : column + tile])
            if "pred_instances" in sample:
                found = sample.pred_instances
                parts.append((row, column, found[found.scores >= threshold].cpu().numpy()))
                continue
            logits = sample.seg_logits.data
            if len(logits) == 1:  # the probability of the second of two classes, which counts from 0.5 on
                logits = torch.cat([1 - logits, logits])
            if total is None:
                total = logits.new_zeros(len(logits), logits.shape[1], image.shape[1])
            total[:, :, column : column + tile] += logits
        if total is not None:  # only one row of tiles is held; the largest sum is that of the largest mean
            labels[row:after] = total[:, : after - row].argmax(0)
            total = F.pad(total[:, after - row :], (0, 0, 0, after - row))
    if parts:
        sample.pred_instances = _merged(parts, tile, *image.shape[:2])
    else:
        sample.pred_sem_seg = PixelData(data=labels[None])
    return sample


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    last = max(length - tile, 0)
    return [*range(0, last, max(1, int(tile * (1 - overlap)))), last]


def _shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    low, high = np.maximum(first, second)[..., :2], np.minimum(first, second)[..., 2:]
    return np.concatenate([low, high], -1)


def _merged(parts: list[tuple[int, int, InstanceData]], tile: int, height: int, width: int) -> InstanceData:
    """The objects of all tiles. Two of one class are one object if, in the region that both tiles see, the IoU of their
    boxes is at least 0.5. A whole object beats pieces, which are put together.
    """
    number = np.repeat(np.arange(len(parts)), [len(found.scores) for *_, found in parts])
    corners = np.array([(column, row) * 2 for row, column, _ in parts])[number]
    boxes, scores, labels = (np.concatenate([found[k] for *_, found in parts]) for k in ("bboxes", "scores", "labels"))
    boxes, edges = (boxes + corners).astype(np.float32), corners + (0, 0, min(tile, width), min(tile, height))
    cut = ((np.abs(boxes - edges) < tile / 64) & (edges > 0) & (edges < (width, height) * 2)).any(1)

    members: dict[int, list[int]] = {}
    for at in np.lexsort((-scores, cut)).tolist():
        kept = np.array(list(members), int)
        seen = _shared(edges[kept], edges[at])
        ours, theirs = _shared(boxes[at], seen), _shared(boxes[kept], seen)
        areas = [(box[:, 2:] - box[:, :2]).clip(0).prod(1) for box in (ours, theirs, _shared(ours, theirs))]
        same = (areas[2] > 0) & (3 * areas[2] >= areas[0] + areas[1])  # as an IoU of 0.5
        same &= (labels[kept] == labels[at]) & (number[kept] != number[at])
        if not cut[kept[same]].all():
            continue
        group = [*kept[same].tolist(), at]
        members[group[0]] = sum((members.pop(piece, [piece]) for piece in group), [])
        for spans in (boxes, edges):
            spans[group[0]] = *spans[group, :2].min(0), *spans[group, 2:].max(0)
    kept = sorted(members, key=lambda at: -scores[at])
    merged = {"bboxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
    if "masks" in parts[0][2]:
        pieces = [mask for *_, found in parts for mask in found.masks]
        merged["masks"] = np.zeros((len(kept), height, width), bool)
        for mask, at in zip(merged["masks"], kept):
            for piece in members[at]:
                (x, y), (h, w) = corners[piece][:2], pieces[piece].shape
                mask[y : y + h, x : x + w] |= pieces[piece]
    return InstanceData(**{key: torch.from_numpy(value) for key, value in merged.items()})
