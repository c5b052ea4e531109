"""Models rewritten for inference, compiled models: the same results as the plain model's."""

import copy

import pytest
import torch
from torch import nn

from golden import fill, golden_model, image, relative_error
from internimage import FlashInternImage, InternImage
from ops_dcnv3 import DCNv3, onednn
from ops_dcnv3.onednn import PackedConv2d, PackedLinear

SMALL = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8), "num_classes": 5}
TWO_LEVELS = {"depths": (1, 1), "groups": (1, 2)}  # all kinds of layers, and quick to trace
FLAGS = [
    {},
    {"layer_scale": 0.5},
    {"layer_scale": 0.5, "post_norm": True},
    {"res_post_norm": True, "dw_kernel_size": 5, "center_feature_scale": True, "use_clip_projector": True},
    {"res_post_norm": True, "layer_scale": 0.5},
    {"act_layer": "SiLU", "norm_layer": "BN"},
    {"features_only": True},
]


@pytest.fixture(autouse=True)
def _take_the_fast_path_at_any_size(monkeypatch):
    monkeypatch.setattr(onednn, "_LEAST_WORK", 1)


def small(cls: type[InternImage] = InternImage, **flags) -> InternImage:
    return fill(cls(**{**SMALL, **flags}))


def maps(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: next(iter(flags), "plain"))
@torch.no_grad()
def test_the_rewritten_model_gives_the_same_result(flags):
    model, x = small(**flags), image(2, 3, 64, 48, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for got, expected in zip(maps(model.optimize_for_inference()(x)), maps(model(x))):
        assert relative_error(got, expected) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@torch.no_grad()
def test_the_rewritten_flash_model_gives_the_same_result():
    model, x = small(FlashInternImage, core_op="DCNv4", layer_scale=0.5), image(2, 3, 64, 64, seed=0)
    assert relative_error(model.optimize_for_inference()(x), model(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_rewritten_model_gives_the_same_result_in_other_types(dtype):
    model, x = small(center_feature_scale=True).to(dtype), image(1, 3, 64, 64, seed=0).to(dtype)
    error = relative_error(model.optimize_for_inference()(x), model(x))
    assert error < 8 * torch.finfo(dtype).eps  # folded weights are rounded once more


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_merged_predictors_give_the_layers_own_offsets_masks_and_gates_as_views_of_padded_rows(groups, gated):
    layer = fill(DCNv3(16, group=groups, center_feature_scale=gated))
    x = image(2, 6, 5, 16, seed=5)
    expected, keys = [*layer.sampling(x), layer(x)], set(layer.state_dict())
    layer.merge_predictors()
    offset, mask, gate = layer.sampling(x)
    for got, want in zip((offset, mask, gate, layer(x)), expected, strict=True):
        if want is None:
            assert got is None
        else:
            torch.testing.assert_close(got, want)
    pitch = offset.stride(2)
    assert pitch % 8 == 0 and pitch - 8 < groups * (27 + gated) <= pitch
    assert offset.stride() == mask.stride() and offset.stride(3) == 1
    assert offset.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()
    assert set(layer.state_dict()) - keys == {"predictors.weight", "predictors.bias"}


def test_observed_predictors_are_not_merged():
    model = small()
    model.levels[0].blocks[0].dcn.mask.register_forward_hook(lambda *_: None)
    blocks = [block for level in model.optimize_for_inference().levels for block in level.blocks]
    assert [block.dcn.predictors is None for block in blocks] == [True, False, False, False, False]


@torch.no_grad()
def test_the_rewritten_tiny_model_equals_the_original_projects():
    golden = golden_model("tiny_224")
    model = fill(InternImage(**golden.kwargs)).optimize_for_inference()
    assert relative_error(model(golden.input), torch.from_numpy(golden.outputs["logits"])) < 1e-4


def test_rewriting_leaves_the_model_trainable_and_shares_its_weights():
    model = small()
    fast = model.optimize_for_inference()
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in fast.parameters())
    assert fast.levels[0].blocks[0].mlp.fc1.weight.data_ptr() == model.levels[0].blocks[0].mlp.fc1.weight.data_ptr()
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


@torch.no_grad()
def test_packed_weights_follow_the_weights():
    x = image(3, 8, seed=1)
    layer = PackedLinear(nn.Linear(8, 6), nn.GELU())
    layer(x)
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), nn.functional.gelu(nn.functional.linear(x, layer.weight, layer.bias)))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    torch.testing.assert_close(layer.double()(x.double()).float(), copy.deepcopy(layer).float()(x))


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_packed_convolutions_equal_pytorchs_at_any_size(groups, memory_format):
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    packed = PackedConv2d(conv)
    for size in (9, 6):
        x = image(2, 8, size, size, seed=2).contiguous(memory_format=memory_format)
        torch.testing.assert_close(packed(x), conv(x))
        assert packed(x).is_contiguous(memory_format=memory_format)


@torch.no_grad()
def test_the_rewritten_model_can_be_exported():
    model, x = small(**TWO_LEVELS), image(1, 3, 64, 64, seed=2)
    for level in model.levels:
        for block in level.blocks:
            block.dcn.backend = "torch"
    program = torch.export.export(model.optimize_for_inference(), (x,))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    assert relative_error(program.module()(x), model(x)) < 1e-5


@pytest.mark.parametrize("rewrite", [False, True])
@torch.no_grad()
def test_the_model_compiles_without_graph_breaks(rewrite):
    model, x = small(**TWO_LEVELS), image(1, 3, 64, 64, seed=3)
    compiled = torch.compile(model.optimize_for_inference() if rewrite else model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), model(x)) < 1e-5


def test_a_training_step_compiles_without_graph_breaks():
    model, x = small(**TWO_LEVELS).train(), image(2, 3, 64, 64, seed=4)
    twin = copy.deepcopy(model)
    torch.compile(twin, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    model(x).square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
