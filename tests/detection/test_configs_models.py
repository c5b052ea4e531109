"""Small copies of the configurations' detectors: a training step, inference, test-time augmentation."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from PIL import Image
from small_detectors import small

register_all_modules()


@pytest.mark.parametrize(
    "name",
    [
        "coco/mask_rcnn_internimage_t_fpn_1x_coco.py",
        "coco/mask_rcnn_flash_intern_image_t_fpn_1x_coco.py",
        "coco/faster_rcnn_internimage_nano_fpn_1x_coco.py",
        "coco/mask_rcnn_internimage_nano_fpn_1x_coco.py",
        "coco/cascade_internimage_l_fpn_1x_coco.py",
        "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py",
        "coco/dino_4scale_internimage_g_objects365_coco_ss.py",
        "coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py",
        "crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py",
        "bdd100k/cascade_internimage_l_fpn_1x_bdd100k.py",
    ],
)
def test_a_small_copy_takes_a_training_step_and_detects(name):
    torch.manual_seed(0)
    shrunk = small(name)
    model = revert_sync_batchnorm(MODELS.build(shrunk.model))
    model.init_weights()
    wrapper = build_optim_wrapper(model, shrunk.optim_wrapper)
    masks = bool(shrunk.model.get("roi_head", {}).get("mask_head"))
    data = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=3, num_items=[3, 2], with_mask=masks)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model.train()
    losses = model.train_step(data, wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    moved = {key.split(".")[0] for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved >= {child for child, module in model.named_children() if list(module.parameters())}
    model.eval()
    data["data_samples"] = [sample.clone() for sample in data["data_samples"]]
    for sample in data["data_samples"]:
        sample.set_metainfo({"scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        found = model.test_step(data)
    assert len(found) == 2
    for sample in found:
        detections = sample.pred_instances
        assert detections.bboxes.shape == (len(detections.scores), 4)
        assert (detections.labels < 3).all() and ("masks" in detections) == masks
        boxes = 10  # the most that DINO keeps, and that the second stage of the others is given, for three classes
        assert len(detections) == boxes if "bbox_head" in shrunk.model else 0 < len(detections) <= 3 * boxes


def test_test_time_augmentation_merges_the_views_of_an_image(tmp_path):
    shrunk = small("coco/dino_4scale_cbinternimage_h_objects365_coco_ms.py")
    sizes = [(96, 32), (96, 48), (96, 64)]
    for step, size in zip(shrunk.tta_pipeline[1].transforms[0], sizes):
        step.scale = size
    file = tmp_path / "grey.png"
    Image.new("RGB", (60, 40), (90, 120, 150)).save(file)
    views = Compose(shrunk.tta_pipeline)(
        {"img_path": str(file), "img_id": 1, "instances": [], "height": 40, "width": 60}
    )
    assert [tuple(view.shape) for view in views["inputs"]] == [
        (3, height, width) for height, width in ((32, 48), (48, 72), (64, 96)) for _ in range(2)
    ]
    assert [sample.flip for sample in views["data_samples"]] == 3 * [False, True]
    model = MODELS.build(ConfigDict(**shrunk.tta_model, module=shrunk.model)).eval()
    with torch.no_grad():
        (merged,) = model.test_step(pseudo_collate([views]))
    scores, boxes = merged.pred_instances.scores, merged.pred_instances.bboxes
    assert 10 <= len(scores) <= 6 * 10 and (scores.diff() <= 0).all()
    assert (boxes >= 0).all() and (boxes[:, 2] <= 60).all() and (boxes[:, 3] <= 40).all()
