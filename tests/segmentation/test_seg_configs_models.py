"""The models of all configurations: released keys, shapes and sizes, learning rates, a training step and inference."""

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import copy
import json
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from seg_recipes import KEYS, NAMES, RECIPES, config, load, released_shapes

from internimage.checkpoint import to_current
from internimage.optim import mm_param_scales

register_all_modules()
MILLIONS = {
    "upernet_internimage_t": 59,
    "upernet_internimage_s": 80,
    "upernet_internimage_b": 128,
    "upernet_internimage_l": 256,
    "upernet_internimage_xl": 368,
    "upernet_internimage_h": 1_120,
    "upernet_internimage_g": 3_113,
    "segformer_internimage_l": 220,
    "segformer_internimage_xl": 330,
    "mask2former_internimage_h_896_80k": 1_314,  # published as 1.31 B
    "mask2former_internimage_h_512": 1_314,
    "mask2former_internimage_h_1024x1024": 1_094,
    "mask2former_internimage_h_896x896": 1_094,
    "mask2former_internimage_h_480": 1_094,
}


@pytest.fixture(scope="module")
def meta_model():
    """Builds a configuration's model without memory, equal ones once."""
    built = {}

    def build(name):
        init_default_scope("mmseg")
        key = json.dumps(config(name)["model"], sort_keys=True)
        if key not in built:
            with torch.device("meta"):
                built[key] = MODELS.build(Config({"model": copy.deepcopy(config(name)["model"])}).model)
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
    names = [name for name in NAMES if name.split("/")[1].startswith(prefix + "_")]
    assert names
    for name in names:
        millions = sum(parameter.numel() for parameter in meta_model(name).parameters()) / 1e6
        assert millions == pytest.approx(MILLIONS[prefix], abs=0.6)


@pytest.mark.parametrize("name", [name for name in NAMES if "upernet_flash" in name])
def test_flash_upernets_are_about_as_large_as_internimages(name, meta_model):
    size = re.search(r"flash_internimage_([tsbl])_", name)[1]
    millions = sum(parameter.numel() for parameter in meta_model(name).parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[f"upernet_internimage_{size}"], rel=0.04)


CLASSIFIERS = {
    name: keys
    for file in ("state_dict_keys.json.gz", "flash_state_dict_keys.json.gz")
    for name, keys in load(file).items()
}


def checkpoint_of(name):
    return (config(name)["model"]["backbone"].get("init_cfg") or {}).get("checkpoint", "").rsplit("/", 1)[-1]


@pytest.mark.parametrize("name", [name for name in NAMES if checkpoint_of(name)])
def test_the_backbone_takes_the_pretrained_file_that_the_recipe_names(name, meta_model):
    family, size = re.match(r"(internimage|flash_intern_image)_(t|s|b|l|xl|h|g)_", checkpoint_of(name)).groups()
    classifier = next(keys for key, keys in CLASSIFIERS.items() if key.startswith(f"{family}_{size}_"))
    backbone = {key: list(value.shape) for key, value in meta_model(name).backbone.state_dict().items()}
    initial = {key for key in backbone if key not in classifier}
    # T is trained here with layer scales, which its classifier does not have; they start at 1.
    assert all(re.search(r"gamma[12]$", key) for key in initial) and bool(initial) == (size == "t")
    assert {key: classifier[key] for key in backbone if key in classifier} == {
        key: shape for key, shape in backbone.items() if key in classifier
    }


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


@pytest.mark.parametrize(
    "name",
    [
        "ade20k/upernet_internimage_t_512_160k_ade20k.py",
        "ade20k/upernet_internimage_h_896_160k_ade20k.py",
        "cityscapes/segformer_internimage_xl_512x1024_160k_mapillary2cityscapes.py",
        "ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py",
    ],
)
def test_learning_rates_follow_the_segmentation_rule(name, meta_model):
    rule = RECIPES[name]["optimizer"]["paramwise_cfg"]
    expected = mm_param_scales(meta_model(name).named_parameters(), **rule, segmentation=True)
    assert scales(name, meta_model) == {key: (scale, 0.05 * decays) for key, (scale, decays) in expected.items()}


def test_mask2former_h_learns_queries_as_slowly_as_the_stem(meta_model):
    found = scales("ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py", meta_model)
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
    from mmengine.registry import PARAM_SCHEDULERS

    schedule = copy.deepcopy(config("ade20k/upernet_internimage_t_512_160k_ade20k.py")["param_scheduler"])
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


# Small copies


def small(name, num_classes=5):
    """A configuration's model with a mini backbone and a short transformer."""
    model = Config(copy.deepcopy(config(name))).model
    depths = [1, 1, 3, 1] if model.backbone.get("level2_post_norm") else [1, 1, 1, 1]
    model.backbone.update(channels=16, depths=depths, groups=[1, 2, 4, 8], init_cfg=None, drop_path_rate=0.1)
    if "level2_post_norm_block_ids" in model.backbone:
        model.backbone.level2_post_norm_block_ids = [1, 2]
    head = model.decode_head
    head.update(in_channels=[16, 32, 64, 128], num_classes=num_classes)
    if "pixel_decoder" in head:
        head.num_queries = 10
        head.train_cfg.num_points = 50
        head.loss_cls.class_weight = [1.0] * num_classes + [0.1]
        head.transformer_decoder.num_layers = head.pixel_decoder.encoder.num_layers = 1
        if head.feat_channels > 256:
            pytest.fail("use a 256-wide head")
    else:
        head.channels = 32
    if model.get("auxiliary_head"):
        model.auxiliary_head.update(in_channels=64, channels=16, num_classes=num_classes)
    model.data_preprocessor.size = (64, 64)
    return model


def batch(*label_maps):
    samples = []
    for labels in label_maps:
        meta = {"img_shape": labels.shape, "ori_shape": labels.shape, "pad_shape": labels.shape}
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels[None])))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *s.shape), generator=generator, dtype=torch.uint8) for s in label_maps]
    return {"inputs": images, "data_samples": samples}


SMALL = [
    "ade20k/upernet_internimage_t_512_160k_ade20k.py",
    "cityscapes/segformer_internimage_l_512x1024_160k_mapillary2cityscapes.py",
    "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py",
    "ade20k/upernet_flash_internimage_s_512_160k_ade20k.py",
    "ade20k/mask2former_flash_internimage_s_640_160k_ade20k_ss_nsmx.py",
]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_copy_takes_a_training_step_and_labels_images_of_any_size(name):
    torch.manual_seed(0)
    init_default_scope("mmseg")
    model = revert_sync_batchnorm(MODELS.build(small(name)))
    model.init_weights()
    wrapper = build_optim_wrapper(model, Config({"w": {"optimizer": {"type": "AdamW", "lr": 1e-3}}}).w)
    first = torch.randint(0, 5, (64, 64))
    first[:8] = 255
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    model.train()
    losses = model.train_step(batch(first, torch.randint(0, 5, (50, 61))), wrapper)
    assert all(torch.isfinite(value).all() for value in losses.values())
    moved = {key.split(".")[0] for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {child for child, module in model.named_children() if list(module.parameters())}
    model.eval()
    with torch.no_grad():
        (found,) = model.test_step(batch(torch.zeros(45, 83, dtype=torch.long)))
    assert found.pred_sem_seg.data.shape == (1, 45, 83)
    assert found.seg_logits.data.shape == (5, 45, 83) and found.pred_sem_seg.data.max() < 5


@pytest.mark.parametrize("name", SMALL[:3])
def test_label_maps_that_are_ignored_everywhere_give_finite_losses_and_gradients(name):
    torch.manual_seed(0)
    init_default_scope("mmseg")
    model = revert_sync_batchnorm(MODELS.build(small(name))).train()
    ignored = torch.full((64, 64), 255)
    losses, _ = model.parse_losses(model(**model.data_preprocessor(batch(ignored, ignored), True), mode="loss"))
    losses.backward()
    assert torch.isfinite(losses)
    # Every parameter takes part, or data-parallel training would wait for it.
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_nsmx_attends_without_softmax():
    from mmcv.ops import MultiScaleDeformableAttention

    from segmentation.models import UnnormalizedDeformableAttention

    torch.manual_seed(0)
    options = {"embed_dims": 32, "num_heads": 4, "num_levels": 2, "dropout": 0.0, "batch_first": True}
    ordinary, ours = MultiScaleDeformableAttention(**options), UnnormalizedDeformableAttention(**options)
    for parameter in ordinary.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.zeros_(ordinary.attention_weights.weight)
    ours.load_state_dict(ordinary.state_dict())
    # The same weights for all queries: give ours what softmax makes of the other's biases.
    ours.attention_weights.bias.data = ordinary.attention_weights.bias.data.view(4, 8).softmax(-1).flatten()
    sizes = torch.tensor([[4, 5], [2, 3]])
    inputs = {
        "query": torch.randn(2, 26, 32),
        "query_pos": torch.randn(2, 26, 32),
        "reference_points": torch.rand(2, 26, 2, 2),
        "key_padding_mask": torch.rand(2, 26) < 0.1,
        "spatial_shapes": sizes,
        "level_start_index": torch.tensor([0, 20]),
    }
    torch.testing.assert_close(ours(**inputs), ordinary(**inputs))
    with torch.no_grad():
        ours.attention_weights.bias *= 2
        torch.testing.assert_close(
            ours(**inputs) - inputs["query"] - ours.output_proj.bias,
            2 * (ordinary(**inputs) - inputs["query"] - ours.output_proj.bias),
        )
