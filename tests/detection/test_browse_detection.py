"""`detection/browse_dataset.py` shows training images with their boxes and masks."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from PIL import Image
from tiny_coco import CLASSES, make_config, make_data

from detection.browse_dataset import draw_annotations
from internimage.mm.browse import browse_dataset


@pytest.mark.parametrize("masks", [True, False])
def test_objects_are_drawn_in_their_places_with_the_names_of_their_classes(masks):
    mask = np.zeros((1, 20, 30), np.uint8)
    mask[0, 5:10, 3:9] = 1
    objects = InstanceData(bboxes=HorizontalBoxes(torch.tensor([[3.0, 5.0, 9.0, 10.0]])), labels=torch.tensor([1]))
    if masks:
        objects.masks = BitmapMasks(mask, 20, 30)
    axis = Figure().subplots()
    sample = DetDataSample(gt_instances=objects)
    assert draw_annotations(axis, np.zeros((20, 30, 3), np.uint8), sample, {"classes": CLASSES}) == {}
    np.testing.assert_array_equal(axis.images[0].get_array().any(2), mask[0].astype(bool) & masks)
    assert axis.patches[0].get_bbox().bounds == (3, 5, 6, 5)
    assert axis.texts[0].get_text() == "green"


def test_training_images_are_drawn_to_one_picture(tmp_path, capsys):
    config = make_config(tmp_path, make_data(tmp_path / "data"))
    browse_dataset(draw_annotations, [str(config), "--out", str(tmp_path / "new/data.png"), "--count", "9"])
    assert "4 training images; the first 4 are drawn to" in capsys.readouterr().out
    assert Image.open(tmp_path / "new/data.png").size > (1000, 200)


def test_data_without_objects_of_the_classes_end_in_one_line(tmp_path, capsys):
    data = make_data(tmp_path / "data")
    content = json.loads((data / "instances.json").read_text())
    (data / "instances.json").write_text(json.dumps({**content, "images": [], "annotations": []}))
    with pytest.raises(SystemExit) as stopped:
        browse_dataset(draw_annotations, [str(make_config(tmp_path, data)), "--out", str(tmp_path / "data.png")])
    assert stopped.value.code == 2
    assert "train_dataloader has no image" in capsys.readouterr().err
