"""`python -m internimage.mm.browse` shows training images with their annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_coco
import tiny_scenes
from PIL import Image

from internimage.mm.browse import main

TASKS = {"detection": tiny_coco, "segmentation": tiny_scenes}


def config_of(task: str, folder: Path) -> str:
    return str(TASKS[task].make_config(folder, TASKS[task].make_data(folder / "data")))


@pytest.mark.parametrize("task", TASKS)
def test_training_images_are_drawn_with_their_annotations(task, tmp_path, capsys):
    main([config_of(task, tmp_path), "--out", str(tmp_path / "new/pictures"), "--count", "2"])
    assert "4 training images; 2 of them, at equal distances, are in" in capsys.readouterr().out
    pictures = sorted((tmp_path / "new/pictures").iterdir())
    assert [path.name for path in pictures] == ["000_0.jpg", "001_2.jpg"]
    drawn = np.asarray(Image.open(pictures[0])).astype(int)
    plain = np.asarray(Image.open(next((tmp_path / "data/images").rglob("0.png"))).resize(drawn.shape[1::-1]))
    changed = np.abs(drawn - plain).max(2) > 40
    assert 0.02 < changed.mean() < 0.9  # what is annotated, not the whole picture


@pytest.mark.parametrize("task", TASKS)
def test_unsuitable_data_end_in_one_line(task, tmp_path, capsys):
    config = config_of(task, tmp_path)
    if task == "detection":
        path = tmp_path / "data/instances.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "images": [], "annotations": []}))
    else:
        Image.fromarray(np.full((48, 72), 9, np.uint8)).save(tmp_path / "data/labels/train/1.png")
    with pytest.raises(SystemExit) as stopped:
        main([config, "--out", str(tmp_path / "pictures")])
    assert stopped.value.code == 2
    message = {"detection": "train_dataloader has no image", "segmentation": "1.png has label 9"}[task]
    assert message in capsys.readouterr().err
