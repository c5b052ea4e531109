"""A gradient that is not finite: the update is left out in all processes, and after some the training stops."""

import os
import sys
from pathlib import Path

import pytest
import tiny_coco
import tiny_scenes
import torch
from processes import in_two_processes

from internimage.checkpoint import load_file
from internimage.mm.runner import DETECTION, SEGMENTATION, train

EXTRA = """
custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="Spoil"), dict(type="SkipBadUpdates", limit=3)]
custom_imports = dict(imports=["internimage.mm", "spoil"])
train_dataloader["batch_size"] = 1
"""
SPOIL = """
import os

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Spoil(Hook):
    # Pixels of NaN in the steps named, in the last process.
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if str(runner.iter) in os.environ["SPOIL"].split() and runner.rank == runner.world_size - 1:
            images = data_batch["inputs"]
            data_batch["inputs"] = [torch.full(image.shape, float("nan")) for image in images]
"""


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "spoil.py").write_text(SPOIL)
    sys.path.append(str(folder))
    tiny = {"detection": tiny_coco, "segmentation": tiny_scenes}[request.param]
    path = tiny.make_config(folder, tiny.make_data(folder / "data"))
    extra = EXTRA
    if request.param == "segmentation":
        extra += 'train_cfg.update(max_iters=6, val_interval=6)\ndefault_hooks["checkpoint"] = dict(interval=6)\n'
    else:
        extra += 'train_cfg["max_epochs"] = 2\ntrain_cfg["val_interval"] = 2\n'
    path.write_text(path.read_text() + extra)
    yield path
    sys.path.remove(str(folder))


def run(config: Path, work_dir: Path, *options: str) -> int:
    task = DETECTION if config.parent.name.startswith("detection") else SEGMENTATION
    try:
        train(task, [str(config), "--work-dir", str(work_dir), *options])
    except SystemExit as stopped:
        return stopped.code
    return 0


def logged(work_dir: Path) -> str:
    return "".join(path.read_text() for path in work_dir.glob("*/*.log"))


def test_a_bad_batch_is_left_out_and_training_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setenv("SPOIL", "1 2")
    assert run(config, tmp_path) == 0
    assert logged(tmp_path).count("update left out, its gradient is not finite (loss nan)") == 2
    content = load_file(next(path for path in tmp_path.glob("*.pth") if path.stem in ("epoch_2", "iter_6")))
    for part in ("state_dict", "ema_state_dict"):
        assert all(value.isfinite().all() for value in content[part].values() if torch.is_tensor(value)), part
    steps = {int(state["step"]) for state in content["optimizer"]["state"].values()}
    assert max(steps) == content["meta"]["iter"] - 2


@pytest.mark.parametrize("config", ["segmentation"], indirect=True)
def test_after_three_in_a_row_both_processes_stop_and_the_batch_is_saved(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SPOIL", "1 3 4 5")
    assert in_two_processes(lambda: run(config, tmp_path, "--launcher", "pytorch")) == [2, 2]
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "3 updates in a row" in errors[0] and "bad_batch_iter_5_rank_" in errors[0]
    saved = torch.load(tmp_path / "bad_batch_iter_5_rank_1.pt", weights_only=False)
    assert saved["batch"]["inputs"][0].isnan().all() and saved["loss"] != saved["loss"]
    assert os.path.exists(saved["batch"]["data_samples"][0].img_path)
    assert all(value.isfinite().all() for value in saved["model"].values())
