"""Learning-rate scales and weight decay of both recipes' rules, against values worked out by hand."""

import functools

import pytest
import torch
from torch import nn

from internimage.optim import mm_param_scales, param_groups
from internimage.variants import create_model

T_DEPTHS, H_DEPTHS = [4, 4, 18, 4], [6, 6, 32, 6]


@functools.cache
def built(name):
    with torch.device("meta"):
        return create_model(name)


@pytest.fixture(params=["internimage_t_1k_224", "internimage_h_22kto1k_640"])
def variant(request):
    return request.param, built(request.param)


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def with_decay(model, **kwargs):
    return by_name(param_groups(model, base_lr=2.0, weight_decay=0.05, layer_decay=0.9, **kwargs))


def test_every_trainable_parameter_is_in_exactly_one_group(variant):
    _, model = variant
    groups = param_groups(model, base_lr=1.0, weight_decay=0.05, layer_decay=0.9, dcn_lr_mul=0.1)
    grouped = [(name, id(p)) for group in groups for name, p in zip(group["names"], group["params"], strict=True)]
    assert sorted(grouped) == sorted((name, id(p)) for name, p in model.named_parameters())


def test_layer_decay_of_t_follows_the_hand_count():
    groups = with_decay(built("internimage_t_1k_224"))
    # 30 blocks: k = 29 at the first, 25 at level 1's first, 21 at level 2's first, 3 at level 3's first, 0 at the last.
    expected = {
        "patch_embed.conv1.weight": 29,
        "patch_embed.norm2.1.bias": 29,
        "levels.0.blocks.0.mlp.fc1.weight": 29,
        "levels.0.blocks.3.norm1.0.weight": 26,
        "levels.0.norm.0.weight": 25,
        "levels.0.downsample.conv.weight": 25,
        "levels.1.blocks.0.dcn.offset.weight": 25,
        "levels.1.downsample.norm.1.bias": 21,
        "levels.2.blocks.0.dcn.input_proj.weight": 21,
        "levels.2.blocks.17.mlp.fc2.bias": 4,
        "levels.2.norm.0.bias": 3,
        "levels.3.blocks.0.norm2.0.bias": 3,
        "levels.3.blocks.3.mlp.fc2.weight": 0,
        "levels.3.norm.0.weight": 0,
        "conv_head.0.weight": 0,
        "head.weight": 0,
    }
    assert {name: groups[name]["lr_scale"] for name in expected} == pytest.approx(
        {name: 0.9**k for name, k in expected.items()}
    )


def test_layer_decay_of_h_leaves_post_norms_and_head_at_the_full_rate():
    groups = with_decay(built("internimage_h_22kto1k_640"), dcn_lr_mul=0.1)
    # 50 blocks; offsets and centre feature scales are slowed down by a further 0.1.
    expected = {
        "patch_embed.conv1.weight": 0.9**49,
        "levels.0.blocks.0.dcn.offset.weight": 0.9**49 * 0.1,
        "levels.1.blocks.5.dcn.center_feature_scale_proj_weight": 0.9**38 * 0.1,
        "levels.1.downsample.conv.weight": 0.9**37,
        "levels.2.blocks.0.res_post_norm1.0.weight": 0.9**37,
        "levels.2.blocks.31.dcn.mask.bias": 0.9**6,
        "levels.2.post_norms.0.0.weight": 1.0,
        "levels.3.blocks.5.dcn.offset.bias": 0.1,
        "levels.3.norm.0.weight": 1.0,
        "dcnv3_head_x4.0.weight": 1.0,
        "clip_projector.cross_dcn.q.weight": 1.0,
        "fc_norm.0.weight": 1.0,
        "head.bias": 1.0,
    }
    assert {name: groups[name]["lr_scale"] for name in expected} == pytest.approx(expected)
    assert groups["patch_embed.conv1.weight"]["lr"] == pytest.approx(2 * 0.9**49)


def test_vectors_and_biases_take_no_weight_decay(variant):
    name, model = variant
    groups = by_name(param_groups(model, base_lr=1.0, weight_decay=0.05))
    assert all((groups[n]["weight_decay"] == 0) == (p.ndim <= 1) for n, p in model.named_parameters())
    if name.startswith("internimage_h"):
        assert groups["levels.0.blocks.0.dcn.center_feature_scale_proj_weight"]["weight_decay"] == 0.05


def test_without_layer_decay_there_are_two_groups_and_the_offset_factor_does_not_count(variant):
    _, model = variant
    groups = param_groups(model, base_lr=1.0, weight_decay=0.05, dcn_lr_mul=0.1)
    assert len(groups) == 2 and all(group["lr"] == 1.0 for group in groups)


def test_frozen_parameters_and_names_exempt_by_the_model_are_respected():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.table = nn.Linear(3, 2), nn.Parameter(torch.zeros(4, 4))
            self.head.weight.requires_grad_(False)

        def no_weight_decay(self):
            return {"table"}

    groups = by_name(param_groups(Net(), base_lr=1.0, weight_decay=0.05))
    assert set(groups) == {"head.bias", "table"}
    assert groups["table"]["weight_decay"] == 0


def test_timm_schedulers_apply_the_scale_once():
    from timm.scheduler import CosineLRScheduler

    groups = param_groups(built("internimage_t_1k_224"), base_lr=1.0, weight_decay=0.05, layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["lr_scale"] for g in groups])
    CosineLRScheduler(optimizer, t_initial=10).step(0)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([g["lr_scale"] for g in groups])


def scale_of(name, shape=(2, 2), *, depths, rate=0.9, **kwargs):
    parameter = nn.Parameter(torch.zeros(shape))
    return mm_param_scales([(name, parameter)], num_layers=sum(depths), layer_decay_rate=rate, depths=depths, **kwargs)[
        name
    ]


T_POWERS = {
    "backbone.patch_embed.conv1.weight": 31,
    "backbone.levels.0.blocks.0.gamma1": 30,
    "backbone.levels.0.downsample.conv.weight": 26,
    "backbone.levels.1.blocks.0.mlp.fc1.weight": 26,
    "backbone.levels.2.norm.0.weight": 4,
    "backbone.levels.3.blocks.0.mlp.fc1.weight": 4,
    "backbone.levels.3.norm.0.weight": 4,
    "backbone.levels.3.blocks.3.mlp.fc1.weight": 1,
    "neck.lateral_convs.0.conv.weight": 0,
    "roi_head.bbox_head.fc_cls.weight": 0,
}
H_POWERS = {
    "backbone.patch_embed.conv2.weight": 51,
    "backbone.levels.2.blocks.5.mlp.fc1.weight": 33,
    "backbone.levels.2.post_norms.0.0.weight": 38,
    "backbone.levels.2.post_norms.4.0.weight": 34,
    "bbox_head.transformer.level_embeds": 51,
    "level_embed": 51,
    "backbone.cb_modules.1.levels.0.blocks.0.mlp.fc1.weight": 0,
    "backbone.cb_modules.0.patch_embed.conv1.weight": 0,
    "decode_head.query_feat.weight": 0,
}


@pytest.mark.parametrize(("depths", "powers"), [(T_DEPTHS, T_POWERS), (H_DEPTHS, H_POWERS)], ids=["T", "H"])
def test_mm_layer_decay_follows_the_hand_count(depths, powers):
    scales = {name: scale_of(name, depths=depths)[0] for name in powers}
    assert scales == pytest.approx({name: 0.9**power for name, power in powers.items()})


def test_segmentation_puts_queries_and_embeddings_at_the_stem_rate():
    embeddings = ("mask_embed.0", "cls_embed", "level_embed", "query_embed", "query_feat")
    names = [f"decode_head.{name}.weight" for name in embeddings] + ["backbone.cb_modules.0.patch_embed.conv1.weight"]
    scales = {name: scale_of(name, depths=H_DEPTHS, segmentation=True)[0] for name in names}
    assert scales == pytest.approx(dict.fromkeys(names, 0.9**51))


def test_offset_factor_counts_everywhere_in_detection_and_only_in_the_backbone_in_segmentation():
    name = "encoder.layers.0.self_attn.sampling_offsets.weight"
    options = {"depths": T_DEPTHS, "offset_lr_scale": 0.001}
    assert scale_of(name, **options)[0] == pytest.approx(0.001)
    assert scale_of("decoder.reference_points.weight", **options)[0] == pytest.approx(0.001)
    assert scale_of(name, **options, segmentation=True)[0] == 1
    assert scale_of(name, depths=T_DEPTHS, dino_head=True)[0] == pytest.approx(0.1)


def test_small_backbone_rate_multiplies_only_scales_below_one():
    options = {"depths": T_DEPTHS, "backbone_small_lr": True}
    assert scale_of("backbone.levels.3.blocks.3.mlp.fc1.weight", **options)[0] == pytest.approx(0.09)
    assert scale_of("neck.convs.0.conv.weight", **options)[0] == 1


def test_mm_weight_decay_leaves_out_vectors_biases_norms_and_sampling_offsets():
    without = {
        "backbone.levels.0.blocks.0.gamma1": (2,),
        "neck.convs.0.conv.bias": (2, 2),
        "encoder.layers.0.norms.0.weight": (2, 2),
        "backbone.relative_position_bias_table": (2, 2),
        "encoder.layers.0.self_attn.sampling_offsets.weight": (2, 2),
    }
    assert scale_of("backbone.levels.0.blocks.0.dcn.offset.weight", depths=T_DEPTHS)[1]
    assert not [name for name, shape in without.items() if scale_of(name, shape, depths=T_DEPTHS)[1]]


def test_mm_rule_leaves_out_frozen_parameters():
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    assert mm_param_scales([("a", frozen)], num_layers=30, layer_decay_rate=0.9, depths=T_DEPTHS) == {}
