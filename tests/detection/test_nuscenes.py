"""Camera-only 3D detectors on a drawn data set in nuScenes' format: trained, resumed, tested by the devkit."""

import importlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import internimage.mm  # noqa: F401 - isort: skip - before mmcv.ops
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

from detection.datasets import nuscenes
from internimage.checkpoint import read_state_dict
from internimage.errors import UserError
from internimage.mm.runner import DETECTION, train
from internimage.mm.runner import test as evaluate
from tools.tiny_nuscenes import make_tiny_nuscenes

mmdet3d = pytest.importorskip("mmdet3d", reason="mmdet3d is not installed (docs/autonomous_driving.md)")
pytest.importorskip("nuscenes", reason="nuScenes' devkit is not installed (docs/autonomous_driving.md)")
from mmdet3d.registry import MODELS  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "detection/configs/nuscenes").glob("*.py"))
NDS = "NuScenes metric/pred_instances_3d_NuScenes/NDS"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nuscenes")
    make_tiny_nuscenes(root, frames=1)
    nuscenes.write_infos(root, "v1.0-mini")
    return root


def small(data: Path) -> list[str]:
    """Options that make a recipe small and name the data."""
    options = []
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options += [f"{loader}.dataset.data_root={data}/", f"{loader}.num_workers=0"]
        options += [f"{loader}.persistent_workers=False"]
        step = 2 if loader == "train_dataloader" else 1
        options += [f"{loader}.dataset.pipeline.{step}.scale=(192,108)"]
        if step == 1:
            options += [f"{loader}.dataset.metainfo.version=v1.0-mini"]
            evaluator = loader.replace("dataloader", "evaluator")
            options += [f"{evaluator}.data_root={data}/", f"{evaluator}.ann_file={data}/nuscenes_infos_val.pkl"]
    options += ["model.backbone.channels=16", "model.backbone.depths=[1,1,1,1]", "model.backbone.groups=[1,2,4,8]"]
    options += ["model.backbone.init_cfg=None", "model.neck.in_channels=[16,32,64,128]", "model.neck.out_channels=32"]
    options += ["model.bbox_head.in_channels=32", "model.bbox_head.feat_channels=32", "model.test_cfg.nms_pre=20"]
    options += ["optim_wrapper.paramwise_cfg.num_layers=4", "optim_wrapper.paramwise_cfg.depths=[1,1,1,1]"]
    return [*options, "train_cfg.val_interval=2", "optim_wrapper.optimizer.lr=0.001", "param_scheduler.0.end=2"]


def losses(folder: Path) -> list[float]:
    lines = [line for path in sorted(folder.glob("*/vis_data/scalars.json")) for line in path.read_text().splitlines()]
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_the_converted_boxes_are_those_that_were_drawn(data):
    infos = pickle.loads((data / "nuscenes_infos_train.pkl").read_bytes())["data_list"]
    seen = [item for camera in infos[0]["cam_instances"].values() for item in camera]
    assert len(infos) == 1 and len(seen) >= 15
    for item in seen:
        x, y, z = item["bbox_3d"][:3]
        assert item["center_2d"] == pytest.approx([1266 * x / z + 800, 1266 * y / z + 450], abs=0.5)


@pytest.mark.parametrize("name", ["fcos3d_internimage_t_nuscenes", "pgd_internimage_t_nuscenes"])
def test_a_recipe_trains_resumes_and_tests(data, tmp_path, name):
    config = str(ROOT / f"detection/configs/nuscenes/{name}.py")
    options = [*small(data), "default_hooks.logger.interval=1", "train_dataloader.batch_size=1"]
    run = [config, "--output", str(tmp_path), "--cfg-options", *options]
    train(DETECTION, [*run, "train_cfg.max_epochs=2"])
    train(DETECTION, [*run, "train_cfg.max_epochs=4"])  # goes on
    trained = losses(tmp_path)
    assert len(trained) == 4 * 6 and np.isfinite(trained).all() and np.mean(trained[-6:]) < np.mean(trained[:6])
    assert read_state_dict(tmp_path / "epoch_4.pth") and (tmp_path / "report/curves.png").exists()

    shown = tmp_path / "shown"
    tested = [config, str(tmp_path / "epoch_4.pth"), "--output", str(tmp_path / "test"), "--show-dir", str(shown)]
    evaluate(DETECTION, [*tested, "--cfg-options", *options, "model.test_cfg.score_thr=0.0"])
    result = json.loads(next((tmp_path / "test").glob("*/*.json")).read_text())
    validated = [
        json.loads(line) for path in tmp_path.glob("2*/vis_data/*.json") for line in path.read_text().splitlines()
    ]
    assert 0 <= result[NDS] <= 1 and any(NDS in record for record in validated)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_documented_size_is_the_models(path):
    config = Config.fromfile(path)
    config.model.backbone.init_cfg = None
    init_default_scope("mmdet3d")
    with torch.device("meta"):
        model = MODELS.build(config.model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    page = (ROOT / "docs/autonomous_driving.md").read_text()
    assert float(re.search(rf"`{path.name}` \| ([\d.]+) M", page)[1]) == round(millions, 1)
    assert isinstance(model.backbone, nn.Module) and type(model.backbone).__name__ == "InternImage"


def test_the_devkit_does_not_lift_pillows_limit_on_decompression_bombs():
    importlib.import_module("nuscenes.utils.map_mask")  # lifts it when it is imported first

    assert Image.MAX_IMAGE_PIXELS == 2**30 // 4 // 3


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(UserError, match="v1.0-mini does not exist; expected the folder of nuScenes' tables"):
        nuscenes.write_infos(tmp_path, "v1.0-mini")
    (tmp_path / "v1.0-mini").mkdir()
    with pytest.raises(UserError, match="is not a complete nuScenes v1.0-mini"):
        nuscenes.write_infos(tmp_path, "v1.0-mini")
