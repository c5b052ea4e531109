"""Whole trainings by the configurations' own loops, samplers, hooks and metrics, with mini backbones on tiny data."""

import detection.datasets  # noqa: F401 - isort: skip - before mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.runner import Runner
from small_detectors import small, small_images
from tiny_layouts import bdd100k, coco_2017, crowd_human, openimages, voc

from internimage.checkpoint import load_exact, to_current

register_all_modules()


def runner(name, layout, num_classes, root, **loop):
    layout(root)
    config = small(name, num_classes, root)
    loaders = [config[f"{split}_dataloader"] for split in ("train", "val", "test")]
    small_images(loaders)
    for loader in loaders:
        loader.update(num_workers=0, persistent_workers=False)
    config.train_cfg.update(loop)
    config.update(work_dir=str(root / "work"), load_from=None, default_scope="mmdet", experiment_name=root.name)
    config.env_cfg.dist_cfg.backend = "gloo"
    config.visualizer.name = root.name
    config.randomness = {"seed": 0}
    return Runner.from_cfg(config)


def last_checkpoint(root):
    work = root / "work"
    return torch.load((work / "last_checkpoint").read_text(), map_location="cpu", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "num_classes", "metric"),
    [
        ("voc/dino_4scale_cbinternimage_h_objects365_voc07.py", voc, 20, "pascal_voc/mAP"),
        ("openimages/dino_4scale_cbinternimage_h_objects365_openimages_ss.py", openimages, 1, "openimages/mAP"),
        ("coco/dino_4scale_internimage_g_objects365_coco_ss.py", coco_2017, 80, "coco/bbox_mAP"),
    ],
)
def test_a_training_counted_in_iterations_evaluates_and_saves(name, layout, num_classes, metric, tmp_path):
    run = runner(name, layout, num_classes, tmp_path, max_iters=2, val_interval=2)
    run.train()
    assert run.iter == 2
    assert f"{metric}: 0." in next(tmp_path.glob("work/*/*.log")).read_text()
    assert last_checkpoint(tmp_path)["meta"]["iter"] == 2


@pytest.mark.slow
def test_crowd_human_trains_an_epoch_and_is_evaluated_at_the_end(tmp_path):
    name = "crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py"
    run = runner(name, crowd_human, 1, tmp_path, max_epochs=1)
    run.train()
    assert "coco/bbox_mAP" in next(tmp_path.glob("work/*/*.log")).read_text()


@pytest.mark.slow
def test_the_long_cascade_recipe_keeps_an_average_of_weights_and_statistics(tmp_path):
    run = runner("coco/cascade_internimage_l_fpn_3x_coco.py", coco_2017, 80, tmp_path, max_epochs=1)
    run.train()
    saved = last_checkpoint(tmp_path)
    key = "roi_head.bbox_head.0.shared_convs.0.bn.running_mean"
    average, last = (
        saved["state_dict"],
        {key.removeprefix("module."): value for key, value in saved["ema_state_dict"].items()},
    )
    assert key in average and set(average) <= set(last)
    assert not torch.equal(average[key], last[key])


@pytest.mark.parametrize(
    "name",
    ["cascade_internimage_l_fpn_1x_bdd100k.py", "dino_4scale_internimage_l_1x_bdd100k.py"],
    ids=["cascade", "dino"],
)
def test_bdd100k_trains_resumes_and_loads_what_it_saved(name, tmp_path):
    run = runner(f"bdd100k/{name}", bdd100k, 10, tmp_path, max_epochs=10, val_interval=10)
    run.train()
    steps = run.iter
    config = run.cfg
    config.train_cfg.max_epochs = 20
    config.update(resume=True, load_from=None, experiment_name="resumed")
    config.visualizer.name = "resumed"
    again = Runner.from_cfg(config)
    again.train()
    assert steps >= 10 and again.iter == 2 * steps and last_checkpoint(tmp_path)["meta"]["epoch"] == 20
    saved = last_checkpoint(tmp_path)["state_dict"]
    model = MODELS.build(config.model)
    assert not load_exact(model, to_current(saved))
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert "coco/bbox_mAP: " in next(tmp_path.glob("work/*/*.log")).read_text()
