"""The configurations of detection and segmentation against what was released: recipes, models, pretrained files."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import segmentation.datasets

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import copy
import functools
import json
import re
from collections.abc import Iterator

import mmdet.utils
import mmseg.utils
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

import mm_recipes.detection
import mm_recipes.segmentation
from internimage.checkpoint import to_current
from internimage.optim import mm_param_scales
from mm_recipes import DETECTION, SEGMENTATION, Released, differences, load

mmdet.utils.register_all_modules(init_default_scope=False)
mmseg.utils.register_all_modules(init_default_scope=False)
VALUES = {DETECTION: mm_recipes.detection.values, SEGMENTATION: mm_recipes.segmentation.values}
SCOPES = {DETECTION: "mmdet", SEGMENTATION: "mmseg"}
UNRELEASED = {
    "coco/dino_4scale_cbinternimage_g_objects365_coco_ms.py",
    "coco/dino_4scale_cbinternimage_g_objects365_coco_ss.py",
    "coco/dino_4scale_cbinternimage_h_objects365_coco_ms.py",
    "lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ms.py",
}
OURS = {  # not of the original project; with the number of parameters
    "coco/faster_rcnn_internimage_t_fpn_1x_coco.py": 46_277_264,
    "coco/faster_rcnn_internimage_nano_fpn_1x_coco.py": 2_892_062,
    "coco/mask_rcnn_internimage_nano_fpn_1x_coco.py": 2_926_606,
    "bdd100k/cascade_internimage_l_fpn_1x_bdd100k.py": 268_301_146,
    "bdd100k/dino_4scale_internimage_l_1x_bdd100k.py": 240_889_364,
    "ade20k/upernet_internimage_nano_512_4k_ade20k.py": 2_540_774,
}
MILLIONS = {  # published, by the start of the configuration's name
    DETECTION: {
        "mask_rcnn_internimage_t": 49,
        "mask_rcnn_internimage_s": 69,
        "mask_rcnn_internimage_b": 115,
        "cascade_internimage_l_fpn_1x_coco": 277,
        "cascade_internimage_l_fpn_3x_coco": 277,
        "cascade_internimage_xl_fpn_3x_coco": 387,
        "dino_4scale_internimage_t": 49,
        "dino_4scale_internimage_l": 241,
        "dino_4scale_internimage_h": 1_099,
        "dino_4scale_internimage_g": 3_083,
        "dino_4scale_cbinternimage_h_objects365_coco": 2_179,
        "mask_rcnn_flash_intern_image_t": 49,
        "mask_rcnn_flash_intern_image_s": 69,
        "mask_rcnn_flash_intern_image_b": 115,
        "cascade_flash_intern_image_l": 277,
    },
    SEGMENTATION: {
        "upernet_internimage_t_": 59,
        "upernet_internimage_s_": 80,
        "upernet_internimage_b_": 128,
        "upernet_internimage_l_": 256,
        "upernet_internimage_xl_": 368,
        "upernet_internimage_h_": 1_120,
        "upernet_internimage_g_": 3_113,
        "segformer_internimage_l_": 220,
        "segformer_internimage_xl_": 330,
        "mask2former_internimage_h_896_80k_": 1_314,  # published as 1.31 B
        "mask2former_internimage_h_512_": 1_314,
        "mask2former_internimage_h_1024x1024_": 1_094,
        "mask2former_internimage_h_896x896_": 1_094,
        "mask2former_internimage_h_480_": 1_094,
    },
}
CLASSIFIERS = load("state_dict_keys.json.gz") | load("flash_state_dict_keys.json.gz")
HEADS = ("head.", "conv_head.", "clip_projector.", "dcnv3_head_x", "fc_norm.")  # of the classifiers
every_configuration = pytest.mark.parametrize(
    ("task", "name"),
    [pytest.param(task, name, id=f"{task.task}-{name}") for task in SCOPES for name in task.names],
)


@functools.cache
def _built(scope: str, model: str) -> nn.Module:
    init_default_scope(scope)
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("internimage.backbone.trunc_normal_", lambda tensor, **_: tensor)  # half the time of building
        return MODELS.build(Config(json.loads(model)))


def meta_model(task: Released, name: str) -> nn.Module:
    """A configuration's model without memory for its parameters; equal ones are built once."""
    return _built(SCOPES[task], json.dumps(task.config(name)["model"], sort_keys=True))


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def checkpoint_name(task: Released, name: str) -> str:
    """The pretrained file of a configuration's backbone, or an empty string."""
    return (task.config(name)["model"]["backbone"].get("init_cfg") or {}).get("checkpoint", "").rsplit("/", 1)[-1]


def model_differences(task: Released, name: str) -> Iterator[str]:
    """Keys, shapes and number of parameters against the released checkpoint, the size against the published one."""
    model = meta_model(task, name)
    if name in task.keys:
        released = {key: torch.empty(shape, device="meta") for key, shape in task.shapes(name).items()}
        expected = {key: list(value.shape) for key, value in to_current(released).items()}
        yield from differences("state_dict", shapes(model), expected)
        yield from differences("parameters", size(model), task.keys[name]["params"])
    elif name in OURS:
        yield from differences("parameters", size(model), OURS[name])
    elif size(model) < 40e6:
        yield f"size: only {size(model)} parameters"
    for prefix, millions in MILLIONS[task].items():
        if name.split("/")[1].startswith(prefix) and abs(size(model) / 1e6 - millions) > 0.6:
            yield f"size: {size(model)} parameters, published {millions} million"


def pretrained_differences(task: Released, name: str) -> Iterator[str]:
    """What the backbone and the pretrained file that its recipe names do not share."""
    pattern = r"(?:\w*?)(internimage|flash_intern_image)_(t|s|b|l|xl|h|g)_"
    family, letter = re.match(pattern, checkpoint_name(task, name)).groups()
    classifier = next(keys for key, keys in CLASSIFIERS.items() if key.startswith(f"{family}_{letter}_"))
    backbone = shapes(meta_model(task, name).backbone)
    initial = [key for key in backbone if key not in classifier]
    # T is trained here with layer scales, which its classifier does not have; they start at 1.
    yield from differences("layer scales that start at 1", bool(initial), letter == "t")
    yield from differences("others that start anew", [k for k in initial if not re.search(r"gamma[12]$", k)], [])
    for key in set(backbone) & set(classifier):
        yield from differences(key, backbone[key], classifier[key])
    left = sorted(key for key in set(classifier) - set(backbone) if not key.startswith(HEADS))
    yield from differences("keys of the file that the backbone lacks", left, [])


@every_configuration
def test_a_configuration_is_the_released_one_in_every_value(task, name):
    init_default_scope(SCOPES[task])
    found = list(model_differences(task, name))
    if name in task.recipes:
        values = VALUES[task](name)
        found += [line for what, ours, theirs in values for line in differences(what, ours, theirs)]
    if checkpoint_name(task, name):
        found += pretrained_differences(task, name)
    assert not found, "\n".join(["", *found])


def test_every_recipe_has_a_configuration_and_the_other_way_round():
    assert len(DETECTION.recipes) == 23 + 12
    assert set(DETECTION.names) - OURS.keys() == set(DETECTION.recipes) | UNRELEASED
    assert set(DETECTION.keys) < set(DETECTION.recipes)
    assert len(SEGMENTATION.keys) == 28 and len(SEGMENTATION.recipes) == 28 + 9
    assert set(SEGMENTATION.names) - OURS.keys() == set(SEGMENTATION.recipes)
    assert set(SEGMENTATION.keys) < set(SEGMENTATION.recipes)


def test_the_box_detectors_are_the_mask_detectors_without_masks():
    for size_name in ("t", "nano"):
        name = f"coco/{{}}_rcnn_internimage_{size_name}_fpn_1x_coco.py"
        boxes, masks = (dict(DETECTION.config(name.format(kind))) for kind in ("faster", "mask"))
        loaders = [boxes[f"{phase}_dataloader"] for phase in ("train", "val", "test")]
        assert "with_mask" not in json.dumps(loaders) and boxes["val_evaluator"]["metric"] == "bbox"
        assert boxes["test_evaluator"] == boxes["val_evaluator"]
        assert shapes(meta_model(DETECTION, name.format("faster"))) == {
            key: value
            for key, value in shapes(meta_model(DETECTION, name.format("mask"))).items()
            if not key.startswith("roi_head.mask_head.")
        }
        for key in ("optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks"):
            assert boxes[key] == masks[key]


def test_every_published_size_is_that_of_a_configuration():
    for task, millions in MILLIONS.items():
        names = [name.split("/")[1] for name in task.names]
        assert all(any(name.startswith(prefix) for name in names) for prefix in millions)


def test_the_composite_g_holds_two_g_backbones():
    single = meta_model(DETECTION, "coco/dino_4scale_internimage_g_objects365_coco_ss.py").backbone
    composite = meta_model(DETECTION, "coco/dino_4scale_cbinternimage_g_objects365_coco_ss.py").backbone
    first, second = map(shapes, composite.cb_modules)
    assert first == shapes(single)
    assert set(first) - set(second) == {key for key in first if key.startswith("patch_embed.")}


def test_test_time_augmentation_only_adds_to_the_single_scale_configuration():
    for name in sorted(UNRELEASED):
        if name.endswith("_ms.py"):
            ours, single = dict(DETECTION.config(name)), DETECTION.config(name.replace("_ms.py", "_ss.py"))
            assert ours.pop("tta_model") and ours.pop("tta_pipeline")
            assert not list(differences(name, ours, single))


def test_flash_upernets_are_about_as_large_as_internimages():
    names = [name for name in SEGMENTATION.names if "upernet_flash" in name]
    assert names
    for name in names:
        letter = re.search(r"flash_internimage_([tsbl])_", name)[1]
        expected = MILLIONS[SEGMENTATION][f"upernet_internimage_{letter}_"]
        assert size(meta_model(SEGMENTATION, name)) / 1e6 == pytest.approx(expected, rel=0.04), name


# Learning rates


def scales(task: Released, name: str) -> dict[str, tuple[float, float]]:
    """`{parameter: (scale, weight decay)}` of the optimizer that a configuration makes."""
    model = meta_model(task, name)
    init_default_scope(SCOPES[task])
    wrapper = build_optim_wrapper(model, Config(task.config(name)).optim_wrapper)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    lr = task.config(name)["optim_wrapper"]["optimizer"]["lr"]
    return {
        names[id(parameter)]: (pytest.approx(group["lr"] / lr), group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


def test_mask_rcnn_t_trains_everything_at_one_rate_and_decays_matrices_only():
    name = "coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    found = scales(DETECTION, name)
    assert set(found) == dict(meta_model(DETECTION, name).named_parameters()).keys()
    assert all(scale == 1 for scale, _ in found.values())
    decays = {key for key, (_, decay) in found.items() if decay == 0.05}
    assert {"neck.fpn_convs.0.conv.weight", "backbone.levels.2.blocks.17.dcn.offset.weight"} <= decays
    assert not decays & {"backbone.levels.0.blocks.0.gamma1", "rpn_head.rpn_cls.bias"}
    assert {decay for _, decay in found.values()} == {0, 0.05}


def test_dino_l_slows_the_backbone_layer_by_layer():
    found = scales(DETECTION, "coco/dino_4scale_internimage_l_1x_coco_layer_wise_lr.py")
    power = {
        "backbone.patch_embed.conv1.weight": 38,
        "level_embed": 38,
        "backbone.levels.0.blocks.0.dcn.offset.weight": 37,
        "backbone.levels.0.downsample.conv.weight": 32,  # that of the next level's first block
        "backbone.levels.1.blocks.0.mlp.fc1.weight": 32,
        "backbone.levels.2.blocks.21.gamma2": 6,
        "backbone.levels.3.blocks.4.dcn.input_proj.weight": 1,
        "neck.convs.0.conv.weight": 0,
        "encoder.layers.0.self_attn.sampling_offsets.weight": 0,
        "bbox_head.cls_branches.0.weight": 0,
    }
    assert {key: found[key][0] for key in power} == {key: 0.9**exponent for key, exponent in power.items()}
    assert found["encoder.layers.0.self_attn.sampling_offsets.weight"][1] == 0
    assert found["encoder.layers.0.self_attn.value_proj.weight"][1] == 1e-4


def test_the_tenth_of_the_rate_goes_to_the_whole_backbone():
    found = scales(DETECTION, "coco/dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr.py")
    assert all(scale == (0.1 if key.startswith("backbone.") else 1) for key, (scale, _) in found.items())
    assert {decay for _, decay in found.values()} == {0.05}


@pytest.mark.parametrize(
    "name", ["dino_4scale_cbinternimage_h_objects365_coco_ss", "cascade_internimage_xl_fpn_3x_coco"]
)
def test_offsets_get_the_recipes_smaller_rate(name):
    name = f"coco/{name}.py"
    rule = DETECTION.recipes[name]["optimizer"]["paramwise_cfg"]
    expected = mm_param_scales(meta_model(DETECTION, name).named_parameters(), **rule)
    found = scales(DETECTION, name)
    assert {key: scale for key, (scale, _) in found.items()} == {key: scale for key, (scale, _) in expected.items()}
    offsets = [key for key in found if "sampling_offsets" in key]
    assert all(found[key][0] == rule["offset_lr_scale"] for key in offsets)
    assert bool(offsets) == name.startswith("coco/dino")


@pytest.mark.parametrize(
    "name",
    [
        "ade20k/upernet_internimage_t_512_160k_ade20k.py",
        "ade20k/upernet_internimage_h_896_160k_ade20k.py",
        "cityscapes/segformer_internimage_xl_512x1024_160k_mapillary2cityscapes.py",
        "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py",
    ],
)
def test_learning_rates_follow_the_segmentation_rule(name):
    rule = SEGMENTATION.recipes[name]["optimizer"]["paramwise_cfg"]
    parameters = meta_model(SEGMENTATION, name).named_parameters()
    expected = mm_param_scales(parameters, **rule, segmentation=True)
    assert scales(SEGMENTATION, name) == {key: (scale, 0.05 * decays) for key, (scale, decays) in expected.items()}


def test_mask2former_h_learns_queries_as_slowly_as_the_stem():
    found = scales(SEGMENTATION, "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py")
    power = {
        "backbone.patch_embed.conv1.weight": 51,
        "decode_head.query_feat.weight": 51,
        "decode_head.query_embed.weight": 51,
        "decode_head.level_embed.weight": 51,
        "decode_head.cls_embed.weight": 51,
        "decode_head.mask_embed.0.weight": 51,
        "backbone.levels.0.blocks.0.dcn.offset.weight": 50,
        "backbone.levels.2.post_norms.0.0.weight": 38,
        "backbone.levels.3.blocks.5.mlp.fc1.weight": 1,
        "decode_head.transformer_decoder.layers.0.cross_attn.attn.in_proj_weight": 0,
        "decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight": 0,
    }
    assert {key: found[key][0] for key in power} == {key: 0.95**exponent for key, exponent in power.items()}
    assert found["decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight"][1] == 0


def test_the_rate_rises_for_1500_iterations_and_falls_to_zero():
    schedule = copy.deepcopy(SEGMENTATION.config("ade20k/upernet_internimage_t_512_160k_ade20k.py")["param_scheduler"])
    schedule[1]["end"] = 4000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build({**item, "optimizer": optimizer}) for item in schedule]
    rates = []
    for _ in range(4000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    for iteration in (0, 1, 700, 1499, 1500, 2500, 3999):
        falling = 1 - iteration / 4000
        warmup = min(iteration / 1500 * (1 - 1e-6) + 1e-6, 1)
        assert rates[iteration] == pytest.approx(falling * warmup, abs=1e-3)
