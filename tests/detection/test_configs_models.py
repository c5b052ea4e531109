"""The models of all configurations: released keys, shapes and sizes, learning rates, a training step and inference."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import copy
import json
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from PIL import Image
from released_recipes import KEYS, NAMES, RECIPES, config, load, released_shapes
from small_detectors import small

from internimage.checkpoint import to_current
from internimage.optim import mm_param_scales

register_all_modules()
MILLIONS = {
    "mask_rcnn_internimage_t": 49,
    "mask_rcnn_internimage_s": 69,
    "mask_rcnn_internimage_b": 115,
    "cascade_internimage_l": 277,
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
}


def on_meta(model_config):
    with torch.device("meta"):
        return MODELS.build(Config({"model": copy.deepcopy(model_config)}).model)


def checkpoint_name(name):
    return config(name)["model"]["backbone"]["init_cfg"]["checkpoint"].rsplit("/", 1)[1]


@pytest.fixture(scope="module")
def meta_model():
    """Builds a configuration's model without memory, equal ones once."""
    built = {}

    def build(name):
        key = json.dumps(config(name)["model"], sort_keys=True)
        if key not in built:
            built[key] = on_meta(config(name)["model"])
        return built[key]

    return build


@pytest.mark.parametrize("name", sorted(KEYS))
def test_the_model_has_the_released_keys_and_shapes_and_number_of_parameters(name, meta_model):
    model = meta_model(name)
    released = to_current({key: torch.empty(shape, device="meta") for key, shape in released_shapes(name).items()})
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in released.items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == KEYS[name]["params"]


@pytest.mark.parametrize("prefix", MILLIONS)
def test_the_model_has_the_published_size(prefix, meta_model):
    for name in (name for name in NAMES if name.split("/")[1].startswith(prefix)):
        assert round(sum(p.numel() for p in meta_model(name).parameters()) / 1e6) == MILLIONS[prefix]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(KEYS)))
def test_the_other_configurations_build_too(name, meta_model):
    assert sum(parameter.numel() for parameter in meta_model(name).parameters()) > 40e6


CLASSIFIERS = load("state_dict_keys.json.gz") | load("flash_state_dict_keys.json.gz")
STARTING = [name for name in NAMES if (config(name)["model"]["backbone"].get("init_cfg") or {}).get("checkpoint")]


@pytest.mark.parametrize("name", STARTING)
def test_the_backbone_takes_the_pretrained_file_that_the_recipe_names(name, meta_model):
    family, size = re.search(
        r"/(\w*internimage|flash_intern_image)_(t|s|b|l|xl)_", "/" + checkpoint_name(name)
    ).groups()
    classifier = next(keys for key, keys in CLASSIFIERS.items() if key.startswith(f"{family}_{size}_"))
    backbone = {key: list(value.shape) for key, value in meta_model(name).backbone.state_dict().items()}
    initial = {key for key in backbone if key not in classifier}
    # T is trained here with layer scales, which its classifier does not have; they start at 1.
    assert all(re.search(r"gamma[12]$", key) for key in initial) and bool(initial) == (size == "t")
    assert {key: classifier[key] for key in backbone if key in classifier} == {
        key: shape for key, shape in backbone.items() if key in classifier
    }
    heads = ("head.", "conv_head.")
    assert not {key for key in classifier if not key.startswith(heads)} - set(backbone)


def test_the_composite_g_holds_two_g_backbones(meta_model):
    composite = meta_model("coco/dino_4scale_cbinternimage_g_objects365_coco_ss.py").backbone
    single = meta_model("coco/dino_4scale_internimage_g_objects365_coco_ss.py").backbone
    first, second = ({key: value.shape for key, value in part.state_dict().items()} for part in composite.cb_modules)
    assert first == {key: value.shape for key, value in single.state_dict().items()}
    assert set(first) - set(second) == {key for key in first if key.startswith("patch_embed.")}


# Learning rates


def scales(name, meta_model):
    """`{parameter: (scale, weight decay)}` of the optimizer that a configuration makes."""
    model = meta_model(name)
    wrapper = build_optim_wrapper(model, Config(config(name)).optim_wrapper)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    lr = config(name)["optim_wrapper"]["optimizer"]["lr"]
    return {
        names[id(parameter)]: (pytest.approx(group["lr"] / lr), group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


def test_mask_rcnn_t_trains_everything_at_one_rate_and_decays_matrices_only(meta_model):
    name = "coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    found = scales(name, meta_model)
    assert set(found) == dict(meta_model(name).named_parameters()).keys()
    assert all(scale == 1 for scale, _ in found.values())
    decays = {key for key, (_, decay) in found.items() if decay == 0.05}
    assert {"neck.fpn_convs.0.conv.weight", "backbone.levels.2.blocks.17.dcn.offset.weight"} <= decays
    assert not decays & {"backbone.levels.0.blocks.0.gamma1", "rpn_head.rpn_cls.bias"}
    assert {decay for _, decay in found.values()} == {0, 0.05}


def test_dino_l_slows_the_backbone_layer_by_layer(meta_model):
    found = scales("coco/dino_4scale_internimage_l_1x_coco_layer_wise_lr.py", meta_model)
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


def test_the_tenth_of_the_rate_goes_to_the_whole_backbone(meta_model):
    found = scales("coco/dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr.py", meta_model)
    assert all(scale == (0.1 if key.startswith("backbone.") else 1) for key, (scale, _) in found.items())
    assert {decay for _, decay in found.values()} == {0.05}


@pytest.mark.parametrize(
    "name", ["dino_4scale_cbinternimage_h_objects365_coco_ss", "cascade_internimage_xl_fpn_3x_coco"]
)
def test_offsets_get_the_recipes_smaller_rate(name, meta_model):
    name = f"coco/{name}.py"
    rule = RECIPES[name]["optimizer"]["paramwise_cfg"]
    expected = mm_param_scales(meta_model(name).named_parameters(), **rule)
    found = scales(name, meta_model)
    assert {key: scale for key, (scale, _) in found.items()} == {key: scale for key, (scale, _) in expected.items()}
    offsets = [key for key in found if "sampling_offsets" in key]
    assert all(found[key][0] == rule["offset_lr_scale"] for key in offsets)
    assert bool(offsets) == name.startswith("coco/dino")


# Small copies


@pytest.mark.parametrize(
    "name",
    [
        "coco/mask_rcnn_internimage_t_fpn_1x_coco.py",
        "coco/mask_rcnn_flash_intern_image_t_fpn_1x_coco.py",
        "coco/cascade_internimage_l_fpn_1x_coco.py",
        "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py",
        "coco/dino_4scale_internimage_g_objects365_coco_ss.py",
        "coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py",
        "crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py",
    ],
)
def test_a_small_copy_takes_a_training_step_and_detects(name):
    torch.manual_seed(0)
    shrunk = small(name)
    model = revert_sync_batchnorm(MODELS.build(shrunk.model))
    model.init_weights()
    wrapper = build_optim_wrapper(model, shrunk.optim_wrapper)
    masks = bool(shrunk.model.get("roi_head", {}).get("mask_head"))
    data = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=3, num_items=[3, 2], with_mask=masks)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model.train()
    losses = model.train_step(data, wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    moved = {key.split(".")[0] for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved >= {child for child, module in model.named_children() if list(module.parameters())}
    model.eval()
    data["data_samples"] = [sample.clone() for sample in data["data_samples"]]
    for sample in data["data_samples"]:
        sample.set_metainfo({"scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        found = model.test_step(data)
    assert len(found) == 2
    for sample in found:
        detections = sample.pred_instances
        assert detections.bboxes.shape == (len(detections.scores), 4)
        assert (detections.labels < 3).all() and ("masks" in detections) == masks
        assert len(detections) == (10 if "bbox_head" in shrunk.model else len(detections))


def test_test_time_augmentation_merges_the_views_of_an_image(tmp_path):
    shrunk = small("coco/dino_4scale_cbinternimage_h_objects365_coco_ms.py")
    sizes = [(96, 32), (96, 48), (96, 64)]
    for step, size in zip(shrunk.tta_pipeline[1].transforms[0], sizes):
        step.scale = size
    file = tmp_path / "grey.png"
    Image.new("RGB", (60, 40), (90, 120, 150)).save(file)
    views = Compose(shrunk.tta_pipeline)(
        {"img_path": str(file), "img_id": 1, "instances": [], "height": 40, "width": 60}
    )
    assert [tuple(view.shape) for view in views["inputs"]] == [
        (3, height, width) for height, width in ((32, 48), (48, 72), (64, 96)) for _ in range(2)
    ]
    assert [sample.flip for sample in views["data_samples"]] == 3 * [False, True]
    model = MODELS.build(ConfigDict(**shrunk.tta_model, module=shrunk.model)).eval()
    with torch.no_grad():
        (merged,) = model.test_step(pseudo_collate([views]))
    scores, boxes = merged.pred_instances.scores, merged.pred_instances.bboxes
    assert 10 <= len(scores) <= 6 * 10 and (scores.diff() <= 0).all()
    assert (boxes >= 0).all() and (boxes[:, 2] <= 60).all() and (boxes[:, 3] <= 40).all()
