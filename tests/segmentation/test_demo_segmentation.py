"""`python -m segmentation.demo`, its real commands on few composites, and its pictures."""

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import json
import re

import pytest
from PIL import Image
from tiny_scenes import ROOT

from demo.compose import CLASSES, compose
from internimage.mm.checks import read_config
from internimage.mm.demo import image_demo
from internimage.mm.runner import SEGMENTATION, train
from internimage.mm.runner import test as evaluate
from ops_dcnv3 import DCNv3
from segmentation.demo import __main__ as demo


@pytest.fixture
def few_composites(tmp_path, monkeypatch):
    """A working folder with the repository's configurations and some composites."""
    compose(tmp_path / "data/composites", train=16, val=4)
    (tmp_path / "segmentation").symlink_to(ROOT / "segmentation")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_model_is_an_upernet_internimage_for_the_classes_of_the_composites():
    from mmengine.registry import MODELS

    config = read_config(str(ROOT / demo.CONFIG))
    assert config.classes == ("background", *CLASSES)
    model = MODELS.build(config.model)
    levels = model.backbone.levels
    assert len(levels) == 4 and all(isinstance(block.dcn, DCNv3) for level in levels for block in level.blocks)
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == len(config.palette) == 6
    assert sum(parameter.numel() for parameter in model.parameters()) < 4e6


def test_the_demo_trains_evaluates_and_draws(few_composites, monkeypatch, capsys):
    options = ["train_cfg.max_epochs=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=8"]
    options += [f"{phase}_dataloader.num_workers=0" for phase in ("train", "val", "test")]
    options += [f"{phase}_dataloader.persistent_workers=False" for phase in ("train", "val", "test")]
    scripts = {
        "segmentation/train.py": lambda arguments: train(SEGMENTATION, arguments),
        "segmentation/test.py": lambda arguments: evaluate(SEGMENTATION, arguments),
        "segmentation/image_demo.py": lambda arguments: image_demo(SEGMENTATION, arguments),
        "-m": lambda arguments: None,  # the composites are there
    }
    steps = []

    def run_in_this_process(script, *arguments):
        steps.append(script)
        scripts[script]([str(argument) for argument in arguments])

    monkeypatch.setattr("demo.steps.run", run_in_this_process)
    monkeypatch.setattr("demo.steps.ROOT", few_composites)
    demo.main(["--cfg-options", *options])

    assert list(dict.fromkeys(steps)) == ["-m", *[name for name in scripts if name != "-m"]]
    folder = few_composites / "output/demo_segmentation"
    (metrics,) = (folder / "test").glob("*/*.json")
    assert set(json.loads(metrics.read_text())) >= {"aAcc", "mIoU"}
    assert list(folder.glob("*/vis_data/events.out.tfevents.*"))  # for TensorBoard
    assert len(re.findall(r"wrote output/demo_segmentation/.*jpg", capsys.readouterr().out)) == len(demo.PHOTOGRAPHS)
    for name in ("report/predictions.png", "test/report_test/predictions.png", "astronaut.jpg", "chelsea.jpg"):
        width, height = Image.open(folder / name).size
        assert width > 400 and height > 100
