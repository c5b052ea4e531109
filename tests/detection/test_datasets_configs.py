"""Every kind of data that a configuration reads, in small: samples for training, and full marks for perfect answers."""

import detection.datasets  # noqa: F401 - isort: skip - before mmdet
from importlib.util import find_spec

import pytest
from mmdet.registry import DATASETS, METRICS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData
from tiny_layouts import bdd100k, coco_2017, crowd_human, lvis, moved, openimages, voc

from mm_recipes.detection import CONFIGS

register_all_modules()


CASES = {
    "coco/mask_rcnn_internimage_t_fpn_1x_coco.py": (coco_2017, 800),
    "coco/mask_rcnn_internimage_t_fpn_3x_coco.py": (coco_2017, 800),
    "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py": (coco_2017, 800),
    "coco/dino_4scale_internimage_h_objects365_coco_ss.py": (coco_2017, 1000),
    "crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py": (crowd_human, 800),
    "bdd100k/cascade_internimage_l_fpn_1x_bdd100k.py": (bdd100k, 800),
    "bdd100k/dino_4scale_internimage_l_1x_bdd100k.py": (bdd100k, 800),
    "openimages/dino_4scale_cbinternimage_h_objects365_openimages_ss.py": (openimages, 1000),
    "voc/dino_4scale_cbinternimage_h_objects365_voc07.py": (voc, 1000),
    "lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py": (lvis, 1000),
}
extra = pytest.mark.skipif(find_spec("lvis") is None, reason="LVIS's own package is an extra; see docs/detection.md")
cases = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[extra] if name.startswith("lvis") else []) for name in CASES]
)


@pytest.fixture
def small_data(tmp_path):
    def prepare(name):
        CASES[name][0](tmp_path)
        whole = Config.fromfile(CONFIGS / name, import_custom_modules=False)
        return Config(moved(whole.to_dict(), tmp_path))

    return prepare


@cases
def test_training_samples_are_images_with_boxes(name, small_data):
    loader = small_data(name).train_dataloader
    data = DATASETS.build(loader.dataset)
    set_random_seed(0)
    sample = data[0]
    boxes = sample["data_samples"].gt_instances
    assert sample["inputs"].shape[0] == 3 and min(sample["inputs"].shape[1:]) > 300
    assert len(boxes) > 0 and (boxes.bboxes.areas > 0).all()
    assert ("masks" in boxes) == ("mask_rcnn" in name)


@cases
def test_perfect_detections_get_full_marks(name, small_data):
    whole = small_data(name)
    data = DATASETS.build(whole.val_dataloader.dataset)
    metric = METRICS.build(whole.val_evaluator)
    metric.dataset_meta = data.metainfo
    for item in (data[index] for index in range(len(data))):
        assert min(item["inputs"].shape[1:]) == CASES[name][1]
        sample = item["data_samples"]
        for part in (sample.gt_instances, sample.ignored_instances):
            part.bboxes = part.bboxes.tensor if isinstance(part.bboxes, HorizontalBoxes) else part.bboxes
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes, labels=truth.labels, scores=truth.bboxes.new_ones(len(truth))
        )
        if "masks" in truth:
            sample.pred_instances.masks = truth.masks.to_tensor(bool, "cpu")
        metric.process({}, [sample.to_dict()])
    marks = metric.evaluate(size=len(data))
    keys = [key for key in marks if key.endswith(("/mAP", "bbox_mAP", "segm_mAP", "bbox_AP"))]
    assert len(keys) == (2 if "mask_rcnn" in name else 1)
    assert all(marks[key] == pytest.approx(1) for key in keys)
    best = whole.default_hooks.checkpoint.save_best
    assert best in marks or (best is None and name.startswith("lvis"))
