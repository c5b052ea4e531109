"""The preset for few images of the docs, in configurations of own data."""

import re

import tiny_coco
import tiny_scenes
from mmengine.config import Config

import detection.datasets.own_data
import segmentation.datasets.own_data
from internimage.checkpoint import load_file
from internimage.mm.runner import DETECTION, train

ROOT = tiny_coco.ROOT


def with_lines_of_the_docs(text, task):
    """A configuration of own data with the two bases and the further lines that a page of the docs shows."""
    page = (ROOT / f"docs/{task}.md").read_text()
    block = re.search(r"### Small models and few images.*?```python\n(.*?)```", page, re.DOTALL)[1]
    bases, _, lines = block.replace(f'"{task}/', f'"{ROOT}/{task}/').partition("\n")
    return re.sub("^_base_ = .*$", bases, text, flags=re.MULTILINE) + lines


def test_a_nano_detector_trains_an_average_on_repeated_jittered_images(tmp_path):
    data, path = tiny_coco.make_data(tmp_path / "data"), tmp_path / "own.py"
    base = ROOT / "detection/configs/coco/faster_rcnn_internimage_nano_fpn_1x_coco.py"
    text = detection.datasets.own_data.own_config(base, path, data, *2 * [("instances.json", "images")])
    path.write_text(with_lines_of_the_docs(text, "detection"))
    loaders = [
        f"{phase}_dataloader.{key}=0" for phase in ("train", "val") for key in ("num_workers", "persistent_workers")
    ]
    settings = ["train_dataloader.dataset.times=2", "train_cfg.max_epochs=1", *loaders]
    train(DETECTION, [str(path), "--work-dir", str(tmp_path / "work"), "--cfg-options", *settings])
    saved = load_file(tmp_path / "work/epoch_1.pth")
    assert saved["meta"]["iter"] == 2 * 4 // 4
    assert not saved["state_dict"]["rpn_head.rpn_conv.weight"].equal(
        saved["ema_state_dict"]["module.rpn_head.rpn_conv.weight"]
    )


def test_a_nano_segmentor_has_the_hooks(tmp_path):
    data, path = tiny_scenes.make_data(tmp_path / "data"), tmp_path / "own.py"
    base = ROOT / "segmentation/configs/ade20k/upernet_internimage_nano_512_4k_ade20k.py"
    folders = (("images/train", "labels/train"), ("images/val", "labels/val"))
    text = segmentation.datasets.own_data.own_config(base, path, data, *folders)
    path.write_text(with_lines_of_the_docs(text, "segmentation"))
    config = Config.fromfile(path, import_custom_modules=False)
    assert [hook.type for hook in config.custom_hooks] == ["EMAHook", "EarlyStoppingHook"]
    assert config.model.decode_head.num_classes == len(tiny_scenes.CLASSES)
