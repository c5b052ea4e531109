"""`segmentation/browse_dataset.py` shows training images beside their label maps."""

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from tiny_scenes import CLASSES, PALETTE, make_config, make_data

from internimage.mm.browse import browse_dataset
from segmentation.browse_dataset import draw_labels


def test_an_image_is_drawn_beside_its_label_map_and_classes_get_their_colours():
    image = np.full((2, 3, 3), 7, np.uint8)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.tensor([[[0, 0, 2], [255, 2, 2]]], dtype=torch.uint8)))
    axis = Figure().subplots()
    legend = draw_labels(axis, image, sample, {"classes": CLASSES, "palette": PALETTE})
    ground, _, green = PALETTE
    expected = [[[7] * 3] * 3 + [ground, ground, green], [[7] * 3] * 3 + [[255] * 3, green, green]]
    np.testing.assert_array_equal(axis.images[0].get_array(), expected)
    assert legend == {"ground": ground, "green": green, "ignored": (255, 255, 255)}


def test_training_images_are_drawn_to_one_picture(tmp_path, capsys):
    config = make_config(tmp_path, make_data(tmp_path / "data"))
    browse_dataset(draw_labels, [str(config), "--out", str(tmp_path / "new/data.png"), "--count", "3"])
    assert "4 training images; the first 3 are drawn to" in capsys.readouterr().out
    assert Image.open(tmp_path / "new/data.png").size > (1000, 200)


def test_a_bad_label_map_is_named(tmp_path, capsys):
    config = make_config(tmp_path, make_data(tmp_path / "data"))
    Image.fromarray(np.full((48, 72), 9, np.uint8)).save(tmp_path / "data/labels/train/1.png")
    with pytest.raises(SystemExit) as stopped:
        browse_dataset(draw_labels, [str(config), "--out", str(tmp_path / "data.png")])
    assert stopped.value.code == 2
    assert "1.png has label 9" in capsys.readouterr().err
