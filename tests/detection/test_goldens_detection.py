"""DINO and Mask R-CNN against stored outputs of the original project, weights loaded from the released layout."""

import numpy as np
import pytest
import torch
from golden_detectors import GoldenDetector, golden_detector
from mmengine.structures import InstanceData
from torch import Tensor

FEATURES, PIXELS = 1e-4, 1e-2


@pytest.fixture(scope="module")
def dino() -> GoldenDetector:
    return golden_detector("dino_mini")


@pytest.fixture(scope="module")
def mask_rcnn() -> GoldenDetector:
    return golden_detector("mask_rcnn_mini")


def check(golden: GoldenDetector, name: str, actual: Tensor, tolerance: float = FEATURES) -> None:
    expected = torch.from_numpy(golden.outputs[name])
    assert actual.shape == expected.shape, name
    assert (actual.double() - expected.double()).abs().max() <= tolerance, name


def check_maps(golden: GoldenDetector, name: str, maps: tuple[Tensor, ...]) -> None:
    for level, feature in enumerate(maps):
        check(golden, f"{name}_{level}", feature.contiguous().flatten()[:4096])


def rows(instances: InstanceData) -> Tensor:
    """Boxes and scores side by side."""
    return torch.cat([instances.bboxes, instances.scores[:, None]], 1)


def check_detections(golden: GoldenDetector, which: str, found: InstanceData) -> None:
    """Those at the cut at `max_per_img` may tie with ones that were cut, so the last score is left out."""
    last = golden.outputs[f"det_bboxes_{which}"][-1, 4]
    clear = golden.outputs[f"det_bboxes_{which}"][:, 4] > last + 1e-6
    assert clear.sum() >= len(clear) - 2
    expected = torch.from_numpy(golden.outputs[f"det_bboxes_{which}"][clear])
    torch.testing.assert_close(rows(found)[clear], expected, rtol=0, atol=PIXELS)
    torch.testing.assert_close(found.scores[clear], expected[:, 4], rtol=0, atol=FEATURES)
    assert np.array_equal(found.labels[clear], golden.outputs[f"det_labels_{which}"][clear])


@pytest.mark.parametrize("name", ["dino", "mask_rcnn"])
def test_parameter_counts_are_the_original_ones(name, request):
    golden = request.getfixturevalue(name)
    assert sum(parameter.numel() for parameter in golden.model.parameters()) == golden.spec["params"]


@torch.no_grad()
def test_dino_features_logits_and_coordinates(dino):
    model = dino.model
    features = model.backbone(dino.images)
    check_maps(dino, "backbone", features)
    features = model.neck(features)
    check_maps(dino, "neck", features)
    encoder_inputs, _ = model.pre_transformer(features, dino.samples)
    check(dino, "encoder_memory", model.forward_encoder(**encoder_inputs)["memory"][:, ::16])
    logits, boxes = model.bbox_head(**model.forward_transformer(features, dino.samples))
    check(dino, "cls_logits", logits[-1])
    check(dino, "cls_logits_layer0", logits[0])
    check(dino, "bbox_coords", boxes[-1])
    check(dino, "bbox_coords_layer0", boxes[0])


@torch.no_grad()
def test_dino_detections(dino):
    for index, sample in enumerate(dino.model.predict(dino.images, dino.samples, rescale=False)):
        check_detections(dino, f"img{index}", sample.pred_instances)
    rescaled = dino.model.predict(dino.images, dino.samples, rescale=True)[0].pred_instances
    check(dino, "det_bboxes_rescaled_img0", rows(rescaled), PIXELS)


@torch.no_grad()
def test_mask_rcnn_features_and_proposals(mask_rcnn):
    model = mask_rcnn.model
    features = model.backbone(mask_rcnn.images)
    check_maps(mask_rcnn, "backbone", features)
    features = model.neck(features)
    check_maps(mask_rcnn, "fpn", features)
    objectness, deltas = model.rpn_head(features)
    for level in (2, 3):
        check(mask_rcnn, f"rpn_cls_{level}", objectness[level][..., :8, :10])
        check(mask_rcnn, f"rpn_bbox_{level}", deltas[level][..., :8, :10])
    proposals = model.rpn_head.predict(features, mask_rcnn.samples, rescale=False)
    assert [len(found) for found in proposals] == mask_rcnn.outputs["num_proposals"].tolist()
    for index, found in enumerate(proposals):
        check(mask_rcnn, f"proposals_img{index}", rows(found)[:30], PIXELS)


@torch.no_grad()
def test_mask_rcnn_heads_on_fixed_regions(mask_rcnn):
    head, features = mask_rcnn.model.roi_head, mask_rcnn.model.extract_feat(mask_rcnn.images)
    rois = torch.tensor(mask_rcnn.spec["inputs"]["fixed_rois"])
    pooled = head.bbox_roi_extractor(features[:4], rois)
    check(mask_rcnn, "roi_feats", pooled[:, :16])
    scores, deltas = head.bbox_head(pooled)
    check(mask_rcnn, "roi_cls_score", scores)
    check(mask_rcnn, "roi_bbox_pred", deltas)
    pooled = head.mask_roi_extractor(features[:4], rois)
    check(mask_rcnn, "mask_roi_feats", pooled[:, :4])
    check(mask_rcnn, "roi_mask_logits", head.mask_head(pooled)[[0, 5, 10, 15]])
    regions = [
        InstanceData(bboxes=own, scores=torch.ones(8), labels=torch.zeros(8, dtype=torch.long))
        for own in rois[:, 1:].split(8)
    ]
    for index, found in enumerate(head.predict(features, regions, mask_rcnn.samples, rescale=False)):
        check(mask_rcnn, f"fixed_det_bboxes_img{index}", rows(found), PIXELS)
        assert np.array_equal(found.labels, mask_rcnn.outputs[f"fixed_det_labels_img{index}"])
    rescaled = head.predict(features, regions, mask_rcnn.samples, rescale=True)[0]
    check(mask_rcnn, "fixed_det_bboxes_rescaled_img0", rows(rescaled), PIXELS)
    assert np.array_equal(rescaled.masks[:5], mask_rcnn.outputs["fixed_det_masks_img0"].astype(bool))


@torch.no_grad()
def test_mask_rcnn_detections(mask_rcnn):
    for index, sample in enumerate(mask_rcnn.model.predict(mask_rcnn.images, mask_rcnn.samples, rescale=False)):
        check_detections(mask_rcnn, f"img{index}", sample.pred_instances)
