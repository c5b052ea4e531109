"""VOC's test set without annotations and its result files; LVIS's evaluation on present-day numpy."""

import detection.datasets  # noqa: F401 - isort: skip - before mmdet
import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image

from detection.datasets.lvis import repair_lvis

XML = """<annotation><size><width>64</width><height>48</height></size><object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"""


def detections(image, labels, scores, boxes):
    sample = DetDataSample(metainfo={"img_id": image, "ori_shape": (48, 64)})
    sample.pred_instances = InstanceData(
        labels=torch.tensor(labels), scores=torch.tensor(scores), bboxes=torch.tensor(boxes)
    )
    return sample.to_dict()


def test_voc_images_without_annotations_are_tested_too(tmp_path):
    root = tmp_path / "VOC2012test"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("known", "secret"):
        Image.new("RGB", (64, 48)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations" / "known.xml").write_text(XML)
    (root / "ImageSets" / "Main" / "test.txt").write_text("known\nsecret\n")
    data = DATASETS.build(
        {
            "type": "VOCTestDataset",
            "data_root": f"{tmp_path}/",
            "ann_file": "VOC2012test/ImageSets/Main/test.txt",
            "data_prefix": {"sub_data_root": "VOC2012test/"},
            "test_mode": True,
        }
    )
    known, secret = data.get_data_info(0), data.get_data_info(1)
    assert known["instances"][0]["bbox"] == [10, 5, 29, 39]  # VOC counts pixels from 1
    assert secret["instances"] == [] and (secret["width"], secret["height"]) == (64, 48)


def test_voc_result_files_have_a_line_per_detection_counted_from_one(tmp_path):
    metric = METRICS.build({"type": "VOCResultFiles", "out_dir": str(tmp_path / "results")})
    metric.dataset_meta = {"classes": ("cat", "dog")}
    metric.process({}, [detections("2012_1", [1, 0], [0.5, 0.25], [[0.0, 1.0, 9.5, 19.0], [2.0, 3.0, 4.0, 5.0]])])
    metric.process({}, [detections("2012_2", [1], [0.125], [[0.0, 0.0, 1.0, 1.0]])])
    assert metric.evaluate(size=2) == {"voc_files/detections": 3.0}
    assert (tmp_path / "results" / "comp4_det_test_cat.txt").read_text() == "2012_1 0.250000 3.00 4.00 5.00 6.00\n"
    assert (tmp_path / "results" / "comp4_det_test_dog.txt").read_text().splitlines() == [
        "2012_1 0.500000 1.00 2.00 10.50 20.00",
        "2012_2 0.125000 1.00 1.00 2.00 2.00",
    ]


def test_lvis_evaluates_on_present_day_numpy(tmp_path):
    pytest.importorskip("lvis", reason="LVIS's own package is an extra; see docs/detection.md")
    assert repair_lvis()
    box = [10, 10, 30, 20]
    truth = {
        "images": [{"id": 1, "width": 64, "height": 48, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 600, "segmentation": []}],
        "categories": [{"id": key, "name": str(key), "frequency": "f"} for key in (1, 2)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    metric = METRICS.build({"type": "LVISMetric", "ann_file": str(tmp_path / "truth.json"), "metric": "bbox"})
    metric.dataset_meta = {"classes": ("1", "2")}
    x, y, w, h = box
    metric.process({}, [detections(1, [0, 1], [0.9, 0.1], [[x, y, x + w, y + h], [0.0, 0.0, 5.0, 5.0]])])
    assert metric.evaluate(size=1)["lvis/bbox_AP"] == pytest.approx(1)
    assert np.__version__.startswith("2")
