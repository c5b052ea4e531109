"""The detection demo: composites are what their annotations say, and its configuration is a small InternImage."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from demo import compose as module
from demo.compose import CLASSES, SIZE, compose, cut_out
from demo.steps import photograph_path
from internimage.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "detection/configs/demo/mask_rcnn_internimage_demo.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "composites"
    assert compose(out, train=12, val=6) == 18
    return out


def annotations(folder, split):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_composites_are_the_same_every_time(folder, tmp_path):
    compose(tmp_path / "again", train=12, val=6)
    assert files(tmp_path / "again") == files(folder)


def test_another_seed_and_another_number_make_the_composites_anew(tmp_path):
    compose(tmp_path / "few", train=2, val=1)
    before = files(tmp_path / "few")
    assert compose(tmp_path / "few", train=2, val=1, seed=1) == 3
    picture = Path("images/train/00000.png")
    assert files(tmp_path / "few")[picture] != before[picture]
    compose(tmp_path / "few", train=3, val=1)
    assert files(tmp_path / "few")[picture] == before[picture]


def test_complete_composites_are_left_alone(folder):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert compose(folder, train=12, val=6) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by the demo"):
        compose(tmp_path, train=1, val=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_composition_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("demo.compose._annotation", fail)
    with pytest.raises(KeyboardInterrupt):
        compose(tmp_path / "composites", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_masks(folder, split):
    for annotation in annotations(folder, split)["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        assert annotation["bbox"] == [columns[0], rows[0], width, height]
        assert annotation["area"] == mask.sum() >= 60


@pytest.mark.parametrize("split", ["train", "val"])
def test_label_maps_agree_with_instance_masks(folder, split):
    content = annotations(folder, split)
    for image in content["images"]:
        expected = np.zeros((SIZE, SIZE), int)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
                assert not expected[mask].any()  # what is hidden belongs to nobody
                expected[mask] = annotation["category_id"]
        assert expected.any()
        labels = np.asarray(Image.open(folder / "labels" / split / image["file_name"]))
        np.testing.assert_array_equal(labels, expected)
        assert Image.open(folder / "images" / split / image["file_name"]).size == (SIZE, SIZE)


def test_splits_share_neither_photographs_nor_garments(tmp_path, monkeypatch):
    opened, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path).read_bytes()) or open_image(path))
    module._write_split(tmp_path, "train", 1, 0)
    train = set(opened)
    opened.clear()
    module._write_split(tmp_path, "val", 1, 0)
    assert (len(train), len(opened)) == (len(CLASSES) + 10, len(CLASSES) + 5)
    assert not train & set(opened)


def test_a_garment_is_cut_out_without_specks_and_pinholes():
    garment = np.zeros((28, 28), np.uint8)
    garment[4:24, 6:22] = 200
    garment[10, 10] = 0  # a pinhole
    garment[14:20, 12:18] = 0  # an opening
    garment[1, 1] = 90  # a speck
    expected = np.zeros((28, 28), bool)
    expected[4:24, 6:22] = True
    expected[14:20, 12:18] = False
    expected[[14, 14, 19, 19], [12, 17, 12, 17]] = True  # its corners are rounded
    np.testing.assert_array_equal(cut_out(garment), expected)


def test_a_missing_photograph_is_named():
    with pytest.raises(UserError, match="nowhere.png is missing; run pip install"):
        photograph_path("nowhere.png")


def test_the_configuration_trains_a_small_detector(folder):
    import detection.models  # noqa: F401 - before mmdet
    from internimage.mm.checks import read_config
    from internimage.mm.runner import CheckedRunner

    config = read_config(str(CONFIG))
    assert config.classes == CLASSES == tuple(config.train_dataloader.dataset.metainfo.classes)
    for phase in ("train", "val", "test"):
        loader = config[f"{phase}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(folder)
        loader.batch_size = 4
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(folder / "annotations/val.json")
    config.work_dir = str(folder.parent / "work")
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.train_dataloader.dataset.indices = 8  # two steps
    runner = CheckedRunner.from_cfg(config)
    assert sum(parameter.numel() for parameter in runner.model.backbone.parameters()) < 2e6
    before = runner.model.backbone.patch_embed.conv1.weight.detach().clone()
    runner.train()
    assert runner.iter == 2
    groups = {id(group["params"][0]): group for group in runner.optim_wrapper.param_groups}
    wide, deep = runner.model.roi_head.bbox_head.shared_fcs[0].weight, runner.model.backbone.patch_embed.conv1.weight
    assert groups[id(wide)]["initial_lr"] == pytest.approx(0.1 * groups[id(deep)]["initial_lr"])
    assert not before.equal(runner.model.backbone.patch_embed.conv1.weight)
    assert {"val/coco/bbox_mAP_50", "val/coco/segm_mAP_50"} <= set(runner.message_hub.log_scalars)


def test_the_demo_composes_what_the_configuration_reads(monkeypatch, tmp_path):
    from detection.demo import __main__ as demo

    commands = []
    monkeypatch.setattr("demo.steps.run", lambda *command: commands.append([str(part) for part in command]))
    with pytest.raises(SystemExit):  # no checkpoint: nothing ran
        demo.main(["--output", str(tmp_path)])
    composed = commands[0][commands[0].index("--output") + 1]
    assert f'data_root = "{composed}/"' in CONFIG.read_text()
