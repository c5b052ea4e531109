"""Deformable attention by the DCNv3 operator against mmcv's form with grid_sample."""

import internimage.mm  # noqa: F401 - isort: skip - before mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from internimage.mm import mmcv_ext
from internimage.ms_deform_attn import ms_deform_attn


def by_grid_sample(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual form: one grid_sample per level."""
    images, _, heads, depth = value.shape
    output = 0
    for level, part in enumerate(value.split([h * w for h, w in shapes.tolist()], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(images * heads, depth, *shapes[level].tolist())
        points = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, points, align_corners=False)  # (N * heads, D, queries, points)
        output = output + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return output.view(images, heads * depth, -1).transpose(1, 2)


def case(shapes, images=1, queries=5, heads=2, depth=4, points=4, dtype=torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    keys = sum(height * width for height, width in shapes)
    value = torch.randn(images, keys, heads, depth, generator=generator, dtype=torch.float64)
    around = torch.rand(images, queries, heads, len(shapes), points, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(images, queries, heads, len(shapes), points, generator=generator, dtype=torch.float64)
    return value.to(dtype), torch.tensor(shapes), (1.4 * around - 0.2).to(dtype), weights.to(dtype)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 5))
def test_it_is_the_usual_form_for_any_sizes(shapes, images, queries, points):
    inputs = case(shapes, images=images, queries=queries, points=points)
    torch.testing.assert_close(ms_deform_attn(*inputs), by_grid_sample(*inputs), rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_usual_form():
    value, shapes, locations, weights = case([(7, 5), (3, 4)], images=2, queries=11)
    grads = []
    for function in (ms_deform_attn, by_grid_sample):
        inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
        function(inputs[0], shapes, *inputs[1:]).square().sum().backward()
        grads.append([tensor.grad for tensor in inputs])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("queries", [900, 4000])
def test_float32_is_as_exact_as_the_usual_form_on_large_maps(queries):
    exact = case([(100, 160), (13, 20)], queries=queries)
    single = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in exact)
    exact = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in single)
    expected = by_grid_sample(*exact)
    own, usual = ((f(*single).double() - expected).abs().max().item() for f in (ms_deform_attn, by_grid_sample))
    assert own < max(3 * usual, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype):
    value, shapes, locations, weights = case([(6, 7)], dtype=dtype)
    expected = by_grid_sample(value.float(), shapes, locations.float(), weights.float()).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ms_deform_attn(value, shapes, locations, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)


def test_no_queries_give_no_output():
    assert ms_deform_attn(*case([(4, 4)], queries=0)).shape == (1, 0, 8)


def test_shapes_may_be_python_integers_and_then_no_tensor_is_read_or_copied_from_the_host():
    value, shapes, locations, weights = case([(7, 5), (3, 4)], images=2, queries=11, dtype=torch.float32)
    torch.testing.assert_close(
        ms_deform_attn(value, shapes.tolist(), locations, weights), ms_deform_attn(value, shapes, locations, weights)
    )
    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(allow_non_fake_inputs=True), Record():  # fake tensors have no data to read
        ms_deform_attn(value, ((7, 5), (3, 4)), locations, weights)
    assert "ops_dcnv3::forward" in names
    assert not {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::_to_copy"} & set(names)


def test_mmcvs_layer_uses_it_except_in_tracing(monkeypatch):
    calls = []
    monkeypatch.setattr(mmcv_ext, "ms_deform_attn", lambda *args: calls.append(args) or ms_deform_attn(*args))
    layer = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=1, batch_first=True).eval()
    layer.init_weights()
    query, shapes = torch.randn(1, 12, 8), torch.tensor([[3, 4]])
    options = {"reference_points": torch.rand(1, 12, 1, 2), "spatial_shapes": shapes}
    options |= {"level_start_index": torch.tensor([0])}
    out = layer(query, value=query, **options)
    assert len(calls) == 1
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    torch.testing.assert_close(layer(query, value=query, **options), out)
    assert len(calls) == 1
