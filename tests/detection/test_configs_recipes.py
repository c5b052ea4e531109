"""The configurations against the released recipes, number by number."""

import copy
import inspect
from pathlib import Path

import pytest
from released_recipes import KEYS, NAMES, RECIPES, ROOT, config, dataset, steps

from internimage import FlashInternImage, InternImage

UNRELEASED = {
    "coco/dino_4scale_cbinternimage_g_objects365_coco_ms.py",
    "coco/dino_4scale_cbinternimage_g_objects365_coco_ss.py",
    "coco/dino_4scale_cbinternimage_h_objects365_coco_ms.py",
    "lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ms.py",
}
recipes = pytest.mark.parametrize("name", sorted(RECIPES))


def as_written(value):
    return [] if value is None else value if isinstance(value, list) else [value]


def test_every_recipe_has_a_configuration_and_the_other_way_round():
    assert len(RECIPES) == 23 + 12
    assert set(NAMES) == set(RECIPES) | UNRELEASED
    assert set(KEYS) < set(RECIPES)


@recipes
def test_the_backbone_has_the_arguments_of_the_recipe(name):
    ours, theirs = config(name)["model"]["backbone"], RECIPES[name]["model"]["backbone"]
    defaults = {
        key: parameter.default
        for cls in (InternImage, FlashInternImage)
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
    } | {"init_cfg": None}
    mine = {key: ours.get(key, defaults.get(key)) for key in theirs}
    mine["res_post_norm"] = bool(mine.get("res_post_norm"))
    start, released_start = mine.pop("init_cfg"), theirs["init_cfg"]
    assert mine == {"res_post_norm": False} | {key: value for key, value in theirs.items() if key != "init_cfg"}
    # One recipe names the same file at its older address.
    assert Path((start or {}).get("checkpoint", "")).name == Path((released_start or {}).get("checkpoint", "")).name
    assert set(ours) <= set(theirs)


@recipes
def test_the_schedule_is_that_of_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]
    warmup, *decay = ours["param_scheduler"]
    assert warmup == {
        "type": "LinearLR",
        "start_factor": theirs["lr_config"]["warmup_ratio"],
        "by_epoch": False,
        "begin": 0,
        "end": theirs["lr_config"]["warmup_iters"],
    }
    assert [milestone for part in decay for milestone in part["milestones"]] == theirs["lr_config"]["step"]
    assert all(part["gamma"] == 0.1 and part["by_epoch"] for part in decay)
    length = "max_epochs" if "max_epochs" in theirs["runner"] else "max_iters"
    assert ours["train_cfg"][length] == theirs["runner"][length]
    assert ours["train_cfg"]["type"].startswith("Epoch" if length == "max_epochs" else "Iter")
    assert ours["train_cfg"]["val_interval"] == theirs["evaluation"].get("interval", 1)
    assert all(part["end"] == theirs["runner"]["max_epochs"] for part in decay)


@recipes
def test_the_optimizer_is_that_of_the_recipe(name):
    ours, theirs = config(name)["optim_wrapper"], RECIPES[name]["optimizer"]
    for key in ("type", "lr", "weight_decay"):
        assert ours["optimizer"][key] == theirs[key]
    assert ours["paramwise_cfg"] == theirs["paramwise_cfg"]
    assert ours["constructor"] == theirs.get("constructor", "DefaultOptimWrapperConstructor")
    assert ours.get("clip_grad") == RECIPES[name]["optimizer_config"]["grad_clip"]


@recipes
def test_hooks_and_initial_weights_are_those_of_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]
    averages = [hook for hook in ours["custom_hooks"] if hook["type"] == "EMAHook"]
    expected = [hook for hook in theirs["custom_hooks"] if hook["type"] == "ExpMomentumEMAHook"]
    assert [(hook["momentum"], hook["priority"]) for hook in averages] == [
        (hook["momentum"], hook["priority"]) for hook in expected
    ]
    assert ours["load_from"] == theirs["load_from"]
    best = ours["default_hooks"]["checkpoint"]["save_best"]
    # "auto" was the first metric; classwise results come first today, so ours is named.
    assert (best is None) == ("save_best" not in theirs["evaluation"])


@recipes
def test_the_data_are_those_of_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]["data"]
    assert ours["train_dataloader"]["batch_size"] == theirs["samples_per_gpu"]
    assert ours["train_dataloader"]["num_workers"] == theirs["workers_per_gpu"]
    for split in ("train", "val", "test"):
        mine, released = ours[f"{split}_dataloader"], theirs[split]
        released = dataset(released) if split == "train" else released
        mine = dataset(mine)
        files = mine["data_root"] + mine["ann_file"]
        assert files == as_written(released["ann_file"])[0].removeprefix("./")
        prefix = mine["data_root"] + next(iter(mine["data_prefix"].values()))
        assert prefix.rstrip("/") == as_written(released["img_prefix"])[0].removeprefix("./").rstrip("/")
    wrappers = {"RepeatDataset": "times", "ClassBalancedDataset": "oversample_thr"}
    outer, released = ours["train_dataloader"]["dataset"], theirs["train"]
    assert (outer["type"] in wrappers) == (released["type"] in wrappers)
    if outer["type"] in wrappers:
        key = wrappers[outer["type"]]
        assert (outer["type"], outer[key]) == (released["type"], released[key])


@recipes
def test_images_are_scaled_cropped_and_flipped_as_in_the_recipe(name):
    ours, theirs = config(name), RECIPES[name]["data"]
    assert steps(dataset(ours["train_dataloader"])["pipeline"]) == steps(dataset(theirs["train"])["pipeline"])
    tested = dict(step[:2] for step in steps(ours["test_dataloader"]["dataset"]["pipeline"]))
    assert [("resize", tested["resize"])] == steps(theirs["test"]["pipeline"])
    normalize = next(step for step in dataset(theirs["train"])["pipeline"] if step["type"] == "Normalize")
    preprocessor = ours["model"]["data_preprocessor"]
    assert (preprocessor["mean"], preprocessor["std"]) == (normalize["mean"], normalize["std"])
    assert preprocessor["bgr_to_rgb"] and preprocessor["pad_size_divisor"] == 32


@recipes
def test_the_evaluation_is_that_of_the_recipe(name):
    ours, theirs = as_written(config(name)["val_evaluator"])[0], RECIPES[name]["evaluation"]
    if ours["type"] == "OpenImagesMetric":
        assert theirs["metric"] == "mAP"
        return
    assert ours["metric"] == theirs["metric"]
    assert ours.get("classwise", False) == theirs.get("classwise", False)
    if "ann_file" in ours:
        assert ours["ann_file"] == RECIPES[name]["data"]["val"]["ann_file"]


two_stage = [name for name in RECIPES if "rpn_head" in RECIPES[name]["model"]]


@pytest.mark.parametrize("name", sorted(two_stage))
def test_two_stage_detectors_are_those_of_the_recipe(name):
    ours, theirs = copy.deepcopy((config(name)["model"], RECIPES[name]["model"]))
    for key in ("type", "rpn_head", "train_cfg", "test_cfg"):
        assert ours[key] == theirs[key]
    for key in ("in_channels", "out_channels", "num_outs"):
        assert ours["neck"][key] == theirs["neck"][key]
    heads = theirs["roi_head"] | {
        "mask_roi_extractor": theirs["roi_head"].get("mask_roi_extractor"),
        "mask_head": theirs["roi_head"].get("mask_head"),
    }
    if isinstance(heads["bbox_head"], list):
        # DCNv4FCBBoxHead without its option for DCNv4 is the ordinary head.
        assert not any(head.pop("with_dcn", False) for head in heads["bbox_head"])
        for head in heads["bbox_head"]:
            head["type"] = head["type"].replace("DCNv4FC", "ConvFC")
    if name.startswith("crowd"):
        assert ours["roi_head"].pop("mask_head") is None
        heads.pop("mask_head")
    assert ours["roi_head"] == heads


@pytest.mark.parametrize("name", sorted(set(RECIPES) - set(two_stage)))
def test_dino_is_that_of_the_recipe(name):
    ours, theirs = config(name)["model"], RECIPES[name]["model"]
    old = theirs["bbox_head"]
    assert ours["type"] == theirs["type"]
    assert ours["test_cfg"] == theirs["test_cfg"]
    neck = theirs["neck"][0] if isinstance(theirs["neck"], list) else theirs["neck"]
    assert ours["neck"] == neck | {"type": "ChannelMapper"}
    head = ours["bbox_head"]
    for key in ("num_classes", "sync_cls_avg_factor", "loss_cls", "loss_bbox", "loss_iou"):
        assert head[key] == old[key]
    assert ours["num_queries"] == old["num_query"] == old["transformer"]["two_stage_num_proposals"]
    assert ours["dn_cfg"]["group_cfg"] == old["dn_cfg"]["group_cfg"]
    noise = {"label": ours["dn_cfg"]["label_noise_scale"], "box": ours["dn_cfg"]["box_noise_scale"]}
    assert noise == old["dn_cfg"]["noise_scale"]
    for key in ("num_feats", "temperature", "normalize"):
        assert ours["positional_encoding"][key] == old["positional_encoding"][key]
    assigner = theirs["train_cfg"]["assigner"]
    assert ours["train_cfg"]["assigner"]["match_costs"] == [assigner[f"{kind}_cost"] for kind in ("cls", "reg", "iou")]
    for part in ("encoder", "decoder"):
        layers = old["transformer"][part]
        assert ours[part]["num_layers"] == layers["num_layers"]
        assert (
            ours[part]["layer_cfg"]["ffn_cfg"]["feedforward_channels"]
            == (layers["transformerlayers"]["feedforward_channels"])
        )


def test_test_time_augmentation_only_adds_to_the_single_scale_configuration():
    added = ("tta_model", "tta_pipeline")
    for name in sorted(UNRELEASED):
        if name.endswith("_ms.py"):
            ours, single = dict(config(name)), config(name.replace("_ms.py", "_ss.py"))
            assert all(ours.pop(key) for key in added)
            assert ours == single


def table_row(name):
    whole = config(name)
    rule, loop = whole["optim_wrapper"]["paramwise_cfg"], whole["train_cfg"]
    layers = f"{rule['layer_decay_rate']:g}" if "layer_decay_rate" in rule else "backbone x 0.1"
    layers += f", offsets x {rule['offset_lr_scale']:g}" if "offset_lr_scale" in rule else ""
    length = f"{loop['max_epochs']} epochs" if "max_epochs" in loop else f"{loop['max_iters'] // 1000}k iterations"
    optimizer = whole["optim_wrapper"]["optimizer"]
    cells = (
        f"`{name.removesuffix('.py')}`",
        length,
        whole["train_dataloader"]["batch_size"],
        f"{optimizer['lr']:g}",
        f"{optimizer['weight_decay']:g}",
        layers,
        whole["model"]["backbone"]["drop_path_rate"],
    )
    return f"| {' | '.join(map(str, cells))} |"


def test_the_documented_table_is_that_of_the_configurations():
    lines = (ROOT / "docs" / "detection.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `") and "/" in line.split("`")[1]]
    assert rows == [table_row(name) for name in NAMES]
