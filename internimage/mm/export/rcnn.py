"""Mask R-CNN and Cascade Mask R-CNN of mmdet as one module from images to boxes, labels and masks, for exporters.

The networks are mmdet's; the steps between them are rewritten with fixed shapes (see `boxes.py`). Results are those of
mmdet's test path. He et al., 2017; Cai and Vasconcelos, 2019.
"""

import torch
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from .boxes import best, decode, level_anchors, picture_sizes, pool_regions, suppress, take

__all__ = ["RCNN"]


class RCNN(nn.Module):
    """A two-stage detector of mmdet.

    `forward` takes normalised images `(N, 3, H, W)`, padded with zeros at the right and bottom, and returns boxes and
    scores `(N, K, 5)` in pixels, labels `(N, K)` int64 and, if there is a mask head, mask probabilities
    `(N, K, h, w)` over each box. Scores fall; places after the last detection have score 0 and label -1.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        roi = detector.roi_head
        self.stages = len(roi.bbox_head) if isinstance(roi.bbox_head, nn.ModuleList) else 0
        self.has_masks = roi.with_mask

    def _parts(self, name: str) -> list[nn.Module]:
        """The heads or extractors of all stages."""
        part = getattr(self.detector.roi_head, name)
        return list(part) if self.stages else [part]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        sizes = picture_sizes(images)
        features = self.detector.extract_feat(images)
        boxes, objectness = self._propose(features, sizes)
        boxes, scores = self._refine(features, boxes, sizes)
        boxes, scores, labels = self._select(boxes, scores * (objectness > 0)[..., None])
        output = torch.cat([boxes, scores[..., None]], -1), labels
        return (*output, self._masks(features, boxes, labels)) if self.has_masks else output

    def _propose(self, features: tuple[Tensor, ...], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Region proposals `(N, P, 4)` and their scores `(N, P)`."""
        head, config = self.detector.rpn_head, self.detector.rpn_head.test_cfg
        all_boxes, all_scores = [], []
        for level, (logits, deltas) in enumerate(zip(*head(features))):
            anchors = level_anchors(head.prior_generator, level, logits)
            scores = logits.float().permute(0, 2, 3, 1).flatten(1)
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.unflatten(1, (-1, 2)).softmax(-1)[..., 0]
            scores, index = best(scores, config.nms_pre)
            deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
            boxes = decode(head.bbox_coder, anchors[index], take(deltas, index), sizes)
            if config.min_bbox_size >= 0:
                scores = scores * ((boxes[..., 2:] - boxes[..., :2]) > config.min_bbox_size).all(-1)
            keep = suppress(boxes, scores[:, None], config.nms.iou_threshold, config.max_per_img)
            all_boxes.append(boxes)
            all_scores.append(scores * keep[:, 0])
        scores, index = best(torch.cat(all_scores, 1), config.max_per_img)
        return take(torch.cat(all_boxes, 1), index), scores

    def _refine(self, features: tuple[Tensor, ...], boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of every class `(N, P, C or 1, 4)` and class probabilities `(N, P, C)` of proposals `(N, P, 4)`."""
        all_logits = 0.0
        heads = self._parts("bbox_head")
        for stage, (head, extractor) in enumerate(zip(heads, self._parts("bbox_roi_extractor"))):
            logits, deltas = head(pool_regions(extractor, features, boxes))
            logits = logits.float().unflatten(0, boxes.shape[:2])
            deltas = deltas.reshape(*boxes.shape[:2], -1, 4)
            all_logits = all_logits + logits
            if stage + 1 < len(heads):
                deltas = _of_best_class(head, logits, deltas)
                boxes = decode(head.bbox_coder, boxes, deltas, sizes)
        each = boxes[:, :, None].expand_as(deltas)
        return decode(head.bbox_coder, each, deltas, sizes), (all_logits / len(heads)).softmax(-1)[..., :-1]

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best detections: boxes `(N, K, 4)`, scores `(N, K)`, labels `(N, K)`."""
        config = self.detector.roi_head.test_cfg
        images, count, classes = scores.shape
        scores = torch.where(scores > config.score_thr, scores, 0.0).transpose(1, 2)  # (N, C, P)
        options = config.nms.iou_threshold, config.max_per_img
        if boxes.shape[2] == 1:
            keep = suppress(boxes[:, :, 0], scores, *options)
            boxes = boxes.expand(-1, -1, classes, -1)
        else:
            each = boxes.transpose(1, 2).reshape(-1, count, 4)
            keep = suppress(each, scores.reshape(-1, 1, count), *options).reshape(images, classes, count)
        scores, index = best((scores * keep).flatten(1), config.max_per_img)
        found = scores > 0
        boxes = take(boxes.transpose(1, 2).reshape(images, -1, 4), index) * found[..., None]
        return boxes, scores, torch.where(found, index // count, -1)

    def _masks(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities `(N, K, h, w)` of the labelled class, averaged over the stages."""
        total = 0.0
        heads = self._parts("mask_head")
        for head, extractor in zip(heads, self._parts("mask_roi_extractor")):
            masks = head(pool_regions(extractor, features, boxes)).float().sigmoid()
            if not head.class_agnostic:
                index = labels.clamp(min=0).reshape(-1, 1, 1, 1)
                masks = masks.gather(1, index.expand(-1, 1, *masks.shape[2:]))
            total = total + masks[:, 0]
        return (total / len(heads)).unflatten(0, boxes.shape[:2]) * (labels >= 0)[..., None, None]


def _of_best_class(head: BBoxHead, logits: Tensor, deltas: Tensor) -> Tensor:
    """The deltas `(N, P, 4)` of the likeliest class among those of all classes `(N, P, C, 4)`."""
    if head.reg_class_agnostic:
        return deltas[:, :, 0]
    label = logits[..., :-1].argmax(-1)
    return deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
