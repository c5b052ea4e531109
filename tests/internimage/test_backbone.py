"""The backbone: released keys and outputs, and the calls that timm and mm users expect."""

import gzip
import json

import pytest
import torch

import internimage
from golden import DATA, fill, golden_model, image, relative_error
from internimage import FlashInternImage, InternImage, InternImageMetaFormer
from ops_dcnv3 import backends

BACKENDS = [name for name in ("cpu", "torch") if backends.status()[name] is None]
PARAMETERS = {  # millions, as published
    "internimage_t_1k_224": 29.9,
    "internimage_s_1k_224": 50.1,
    "internimage_b_1k_224": 97.5,
    "internimage_l_22kto1k_384": 223.3,
    "internimage_xl_22kto1k_384": 334.8,
    "internimage_h_22kto1k_640": 1089.6,
    "internimage_g_22kto1k_512": 3076.4,
}
SMALL = {"channels": 16, "depths": (1, 2, 3, 1), "groups": (1, 2, 4, 8), "num_classes": 5}


def small(**overrides) -> InternImage:
    torch.manual_seed(0)
    return InternImage(**{**SMALL, **overrides}).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["tiny_224", "mini_l_64", "mini_h_96", "mini_flash_64"])
def test_keys_logits_and_features_equal_the_original_project(name, backend):
    golden = golden_model(name)
    model = (FlashInternImage if "flash" in name else InternImage)(**golden.kwargs)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == golden.keys
    fill(model)
    for level in model.levels:
        for block in level.blocks:
            block.dcn.backend = backend
    with torch.no_grad():
        features = model.forward_intermediates(golden.input, intermediates_only=True)
        logits = model(golden.input)
    assert relative_error(logits, torch.from_numpy(golden.outputs["logits"])) < 1e-4
    for level, feature in enumerate(features if "feature0_shape" in golden.outputs else ()):
        assert list(feature.shape) == golden.outputs[f"feature{level}_shape"].tolist()
        head = feature.reshape(-1)[:4096]
        assert relative_error(head, torch.from_numpy(golden.outputs[f"feature{level}_head"])) < 1e-4
        assert feature.mean().item() == pytest.approx(float(golden.outputs[f"feature{level}_mean"]), abs=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_variants_have_the_published_keys_and_parameters(name):
    with gzip.open(DATA / "state_dict_keys.json.gz") as file:
        keys = json.load(file)[name]
    with torch.device("meta"):
        model = internimage.create_model(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == keys
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PARAMETERS[name]


def test_feature_maps_have_strides_4_to_32_and_any_image_size_works():
    model = small(features_only=True)
    features = model(image(1, 3, 70, 45, seed=0))
    assert [tuple(f.shape) for f in features] == [(1, 16, 18, 12), (1, 32, 9, 6), (1, 64, 5, 3), (1, 128, 3, 2)]
    assert model.feature_info.channels() == [16, 32, 64, 128] and model.feature_info.reduction() == [4, 8, 16, 32]
    assert not any(key.startswith(("head", "conv_head")) for key in model.state_dict())


def test_a_hook_on_a_level_sees_its_map_and_its_gradient():
    model, seen = InternImage(channels=16, depths=(1, 1), groups=(1, 2), num_classes=3), []
    model.levels[1].register_forward_hook(lambda _, args, output: (output.retain_grad(), seen.append(output))[1])
    model(torch.randn(1, 3, 64, 64)).amax().backward()
    assert seen[0].shape == seen[0].grad.shape == (1, 8, 8, 32) and seen[0].grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 64, 3)])
def test_images_of_another_layout_are_refused_by_shape(shape):
    model = InternImage(channels=16, depths=(1, 1), groups=(1, 2), num_classes=3)
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, H, W\); got"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    "name", [f"flash_intern_image_{size}" for size in ("t_1k_224", "s_1k_224", "b_1k_224", "l_22kto1k_384")]
)
def test_flash_variants_have_the_released_keys(name):
    with gzip.open(DATA / "flash_state_dict_keys.json.gz") as file:
        keys = json.load(file)[name]
    with torch.device("meta"):
        model = internimage.create_model(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == keys


FLAGS = [
    {"layer_scale": 1e-5, "post_norm": True},
    {"layer_scale": 1.0},
    {"res_post_norm": True, "dw_kernel_size": 5, "center_feature_scale": True},
    {"post_norm": True, "center_feature_scale": True, "level2_post_norm": True, "level2_post_norm_block_ids": (0, 2)},
    {"remove_center": True, "offset_scale": 2.0},
    {"drop_path_rate": 0.4, "drop_path_type": "uniform", "drop_rate": 0.1},
    {"norm_layer": "BN", "act_layer": "SiLU", "in_chans": 4},
    {"core_op": "DCNv3_pytorch", "use_dcn_v4_op": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags)))
def test_every_flag_trains_every_parameter(flags):
    model = small(**flags).train()
    model(image(2, flags.get("in_chans", 3), 64, 64, seed=4)).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


def test_drop_path_rises_linearly_or_is_uniform():
    rates = lambda model: [getattr(b.drop_path, "drop_prob", 0.0) for level in model.levels for b in level.blocks]  # noqa: E731
    assert rates(small(drop_path_rate=0.6)) == pytest.approx([0.6 * i / 6 for i in range(7)])
    assert rates(small(drop_path_rate=0.6, drop_path_type="uniform")) == [0.6] * 7


def test_frozen_levels_leave_the_stem_trainable():
    model = small()
    model.freeze_levels(2)
    frozen = {name.split(".blocks")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".downsample")[0].split(".norm")[0] for name in frozen} == {"levels.0", "levels.1"}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="group must divide channels"):
        small(groups=(3, 2, 4, 8))
    with pytest.raises(ValueError, match="drop_path_type"):
        small(drop_path_type="cosine")
    with pytest.raises(ValueError, match="core_op"):
        small(core_op="DCNv2")
    with pytest.raises(ValueError, match="num_classes must be at least 0; got -3"):
        small(num_classes=-3)
    with pytest.raises(ValueError, match="FlashInternImage has none"):
        FlashInternImage(**SMALL, center_feature_scale=True)
    with pytest.raises(ValueError, match="levels 0 to 3"):
        small().forward_intermediates(image(1, 3, 32, 32, seed=2), indices=[4])
    with pytest.raises(internimage.UserError, match="internimage_t_1k_224"):
        internimage.create_model("internimage_t_224")


def test_create_model_loads_a_file_and_overrides_the_classifier(tmp_path):
    with torch.device("meta"):
        state = internimage.create_model("internimage_t_1k_224").state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    torch.save({"model": state}, tmp_path / "t.pth")
    model = internimage.create_model("internimage_t_1k_224", pretrained=tmp_path / "t.pth")
    assert not any(p.any() for p in model.parameters())
    model = internimage.create_model("internimage_t_1k_224", pretrained=tmp_path / "t.pth", num_classes=7)
    assert model.head.weight.shape == (7, 768) and not model.conv_head[0].weight.any()


def test_the_meta_former_adds_logits_from_time_and_place():
    torch.manual_seed(0)
    model = InternImageMetaFormer(**SMALL).eval()
    images, temporal, spatial = image(2, 3, 32, 32, seed=6), image(2, 4, seed=7), image(2, 3, seed=8)
    logits = model((images, temporal, spatial))
    torch.testing.assert_close(model(images, temporal, spatial), logits)
    plain = small()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("meta_")})
    assert (logits - plain(images)).abs().max() > 1e-3
    assert model.meta_head_1[3].w1.weight.shape == (64, 64) and model.meta_head.weight.shape == (5, 128)
    with pytest.raises(ValueError, match="pass zeros"):
        model(images)
