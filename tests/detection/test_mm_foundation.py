"""Registries, learning-rate groups, pretrained weights and checkpoints of the mm frameworks."""

import detection.models  # noqa: F401 - isort: skip - before mmdet
import re

import mmdet.registry
import mmseg.registry
import pytest
import torch
from golden_detectors import dino, golden_detector
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn

import internimage.mm.registration as mm
from golden import filled
from internimage import CheckpointError, UserError
from internimage.checkpoint import load_exact, load_file, read_state_dict, to_current
from internimage.optim import mm_param_scales

TINY = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}
RULE = {"num_layers": 5, "layer_decay_rate": 0.9, "depths": [1, 1, 2, 1], "offset_lr_scale": 0.01}
REGISTRIES = {"mmdet": mmdet.registry.MODELS, "mmseg": mmseg.registry.MODELS}


def build_backbone(kind: str = "InternImage", **kwargs) -> nn.Module:
    return mmdet.registry.MODELS.build({"type": kind, **TINY, **kwargs})


@pytest.mark.parametrize("framework", REGISTRIES)
@pytest.mark.parametrize("kind", ["InternImage", "FlashInternImage"])
def test_backbones_are_registered_and_give_maps(framework, kind):
    core_op = "DCNv4" if kind.startswith("Flash") else "DCNv3"
    backbone = REGISTRIES[framework].build({"type": kind, **TINY, "core_op": core_op, "out_indices": [1, 3]})
    shapes = [tuple(feature.shape) for feature in backbone(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(1, 32, 8, 12), (1, 128, 2, 3)]


def test_frozen_stages_freeze_levels_from_the_first():
    backbone = build_backbone(frozen_stages=2)
    frozen = {name.split(".")[1] for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0", "1"}


# Pretrained weights


def save_classifier(path, **overrides) -> dict[str, torch.Tensor]:
    model = mm.backbone.InternImage(**{**TINY, "num_classes": 10, **overrides})
    state = filled({key: list(value.shape) for key, value in model.state_dict().items()})
    torch.save({"model": state, "epoch": 3}, path)
    return state


def test_a_classifier_file_initialises_the_backbone(tmp_path):
    state = save_classifier(tmp_path / "tiny.pth")
    backbone = build_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "tiny.pth")})
    backbone.init_weights()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_both_parts_of_a_composite_backbone_take_a_classifier_file(tmp_path):
    state = save_classifier(tmp_path / "tiny.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "tiny.pth")}
    backbone = build_backbone("CBInternImage", init_cfg=init_cfg)
    backbone.init_weights()
    for module in backbone.cb_modules:
        own = {key: value for key, value in module.state_dict().items() if not key.startswith("gamma")}
        assert all(torch.equal(value, state[key]) for key, value in own.items())
    assert not backbone.cb_modules[1].gamma0.any()


def test_weights_are_initialised_once(tmp_path):
    save_classifier(tmp_path / "tiny.pth")
    backbone = build_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "tiny.pth")})
    backbone.init_weights()
    backbone.patch_embed.conv1.bias.data.fill_(7)
    backbone.init_weights()
    assert (backbone.patch_embed.conv1.bias == 7).all()


def test_a_missing_pretrained_file_is_an_error_with_its_path(tmp_path):
    backbone = build_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")})
    with pytest.raises(UserError, match="no checkpoint at .*none.pth"):
        backbone.init_weights()


def test_a_pretrained_file_of_another_size_is_an_error(tmp_path):
    save_classifier(tmp_path / "wide.pth", channels=32)
    backbone = build_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "wide.pth")})
    with pytest.raises(CheckpointError, match="of another shape"):
        backbone.init_weights()


@pytest.mark.parametrize("init_cfg", [{"type": "Kaiming"}, {"type": "Pretrained"}])
def test_another_init_cfg_is_an_error(init_cfg):
    with pytest.raises(UserError, match="init_cfg of InternImage must be"):
        mm.InternImage(**TINY, init_cfg=init_cfg)


# Learning rates


class Detector(nn.Module):
    """A backbone and a head with the names that the rule looks at."""

    def __init__(self, head: str = "bbox_head") -> None:
        super().__init__()
        self.backbone = mm.InternImage(**TINY)
        self.add_module(head, nn.ModuleDict({"sampling_offsets": nn.Linear(4, 4), "fc": nn.Linear(4, 2)}))


def optim_wrapper(model: nn.Module, **paramwise_cfg):
    config = {
        "type": "OptimWrapper",
        "constructor": "CustomLayerDecayOptimizerConstructor",
        "optimizer": {"type": "AdamW", "lr": 0.01, "weight_decay": 0.05},
        "paramwise_cfg": {**RULE, **paramwise_cfg},
    }
    return build_optim_wrapper(model, ConfigDict(config))


@pytest.mark.parametrize(("head", "segmentation"), [("bbox_head", False), ("decode_head", True)])
def test_the_constructor_gives_every_parameter_the_recipes_rate_and_decay(head, segmentation):
    model = Detector(head)
    model.backbone.patch_embed.requires_grad_(False)
    expected = mm_param_scales(model.named_parameters(), **RULE, segmentation=segmentation)
    groups = optim_wrapper(model).optimizer.param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = {name: rates.pop(id(p)) for name, p in model.named_parameters() if id(p) in rates}
    assert not rates and names.keys() == expected.keys()
    assert names == {name: (0.01 * scale, 0.05 if decays else 0.0) for name, (scale, decays) in expected.items()}


def test_an_unknown_key_of_paramwise_cfg_names_the_nearest():
    with pytest.raises(UserError, match="'layer_decay_ratio'; did you mean 'layer_decay_rate'"):
        optim_wrapper(Detector(), layer_decay_ratio=0.9)


# Checkpoints


def test_mmengine_checkpoints_with_log_histories_load_safely(tmp_path):
    hub = MessageHub.get_instance("foundation test")
    for step in range(3):
        hub.update_scalar("train/loss", torch.tensor(1.0 / (step + 1)))
    hub.update_info("epoch", 2)
    torch.save({"state_dict": {"w": torch.ones(2)}, "message_hub": hub.state_dict()}, tmp_path / "epoch_2.pth")
    loaded = torch.load(tmp_path / "epoch_2.pth", weights_only=True)
    restored = MessageHub.get_instance("restored")
    restored.load_state_dict(loaded["message_hub"])
    assert restored.get_scalar("train/loss").mean() == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert read_state_dict(tmp_path / "epoch_2.pth").keys() == {"w"}


class Reaching:
    """Pickles as `getattr(owner, name)`."""

    def __init__(self, *reached) -> None:
        self.reached = reached

    def __reduce__(self):
        return getattr, self.reached


@pytest.mark.parametrize("unsafe", [re.compile("x"), Reaching(HistoryBuffer, "__init__"), Reaching(dict, "update")])
def test_arbitrary_objects_in_checkpoints_are_still_refused(unsafe, tmp_path):
    torch.save({"state_dict": {}, "hook": unsafe}, tmp_path / "unsafe.pth")
    with pytest.raises(CheckpointError, match="safety|not a readable checkpoint"):
        load_file(tmp_path / "unsafe.pth")


RENAMED = {
    "bbox_head.transformer.level_embeds": "level_embed",
    "bbox_head.transformer.enc_output_norm.weight": "memory_trans_norm.weight",
    "bbox_head.transformer.enc_output.bias": "memory_trans_fc.bias",
    "bbox_head.transformer.query_embed.weight": "query_embedding.weight",
    "bbox_head.label_embedding.weight": "dn_query_generator.label_embedding.weight",
    "bbox_head.transformer.decoder.ref_point_head.0.weight": "decoder.ref_point_head.layers.0.weight",
    "bbox_head.transformer.decoder.ref_point_head.2.weight": "decoder.ref_point_head.layers.1.weight",
    "bbox_head.transformer.decoder.norm.weight": "decoder.norm.weight",
    "bbox_head.transformer.encoder.layers.3.norms.0.bias": "encoder.layers.3.norms.0.bias",
    "bbox_head.transformer.encoder.layers.3.attentions.0.value_proj.bias": "encoder.layers.3.self_attn.value_proj.bias",
    "bbox_head.transformer.decoder.layers.0.attentions.0.attn.in_proj_bias": (
        "decoder.layers.0.self_attn.attn.in_proj_bias"
    ),
    "bbox_head.transformer.decoder.layers.5.attentions.1.value_proj.bias": (
        "decoder.layers.5.cross_attn.value_proj.bias"
    ),
    "bbox_head.transformer.encoder.layers.0.ffns.0.layers.1.bias": "encoder.layers.0.ffn.layers.1.bias",
    "bbox_head.transformer.decoder.layers.0.ffns.0.layers.0.0.weight": "decoder.layers.0.ffn.layers.0.0.weight",
    "neck.0.convs.0.conv.weight": "neck.convs.0.conv.weight",
    "bbox_head.cls_branches.6.bias": "bbox_head.cls_branches.6.bias",
    "backbone.levels.0.blocks.0.gamma1": "backbone.levels.0.blocks.0.gamma1",
}


def test_old_dino_keys_are_renamed_on_meta_tensors_too():
    old = {key: torch.empty(index + 1, device="meta") for index, key in enumerate(RENAMED)}
    new = to_current(old)
    assert {key: len(value) for key, value in new.items()} == {RENAMED[key]: len(old[key]) for key in old}
    assert to_current(new) == new


def test_split_feed_forward_blocks_become_ordinary_ones():
    prefix = "bbox_head.transformer.encoder.layers.0.ffns.0."
    shapes = {f"{prefix}fc2_bias": [8]}
    for part in range(4):
        shapes |= {f"{prefix}fc1_{part}.weight": [6, 8], f"{prefix}fc1_{part}.bias": [6]}
        shapes |= {f"{prefix}fc2_{part}.weight": [8, 6]}
    old = filled(shapes)
    x = torch.randn(3, 8)
    parts = [(x @ old[f"{prefix}fc1_{i}.weight"].T + old[f"{prefix}fc1_{i}.bias"]).relu() for i in range(4)]
    expected = sum(part @ old[f"{prefix}fc2_{i}.weight"].T for i, part in enumerate(parts)) + old[f"{prefix}fc2_bias"]
    new = {key.removeprefix("encoder.layers.0.ffn.layers."): value for key, value in to_current(old).items()}
    block = nn.Sequential(nn.Sequential(nn.Linear(8, 24), nn.ReLU()), nn.Linear(24, 8))
    block.load_state_dict(new)
    torch.testing.assert_close(block(x), expected)


def test_old_mask2former_keys_are_renamed_with_cross_attention_first():
    pixel, decoder = "decode_head.pixel_decoder.encoder.layers.1", "decode_head.transformer_decoder.layers"
    renamed = {
        f"{pixel}.attentions.0.value_proj.bias": f"{pixel}.self_attn.value_proj.bias",
        f"{pixel}.ffns.0.layers.1.bias": f"{pixel}.ffn.layers.1.bias",
        f"{decoder}.0.attentions.0.attn.in_proj_bias": f"{decoder}.0.cross_attn.attn.in_proj_bias",
        f"{decoder}.8.attentions.1.attn.in_proj_bias": f"{decoder}.8.self_attn.attn.in_proj_bias",
        f"{decoder}.8.ffns.0.layers.0.0.bias": f"{decoder}.8.ffn.layers.0.0.bias",
        f"{decoder}.8.norms.2.bias": f"{decoder}.8.norms.2.bias",
        "decode_head.level_embed.weight": "decode_head.level_embed.weight",
    }
    assert list(to_current(dict.fromkeys(renamed, torch.empty(1, device="meta")))) == list(renamed.values())


def released_dino(path) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A file as the original project's EMA hook left it, and the model with the same weights."""
    golden = golden_detector("dino_mini")
    state = filled(golden.spec["keys"])
    averaged = {f"ema_{key.replace('.', '_')}": value + 1 for key, value in state.items()}
    torch.save({"state_dict": state | averaged, "meta": {"CLASSES": ("a", "b")}}, path)
    return golden.model, dino(golden.spec["model"])


def test_mmengine_loads_a_released_detector_as_it_is(tmp_path):
    expected, config = released_dino(tmp_path / "dino.pth")
    model = mmdet.registry.MODELS.build(ConfigDict(config))
    load_checkpoint(model, str(tmp_path / "dino.pth"), map_location="cpu", strict=True)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    load_exact(model, read_state_dict(tmp_path / "dino.pth"))


def test_a_detector_that_is_current_loads_unchanged():
    model = golden_detector("dino_mini").model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    load_state_dict(model, state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_models_with_other_backbones_get_no_hook():
    parent = nn.Module()
    parent.backbone = nn.Linear(1, 1)
    assert not parent._load_state_dict_pre_hooks
