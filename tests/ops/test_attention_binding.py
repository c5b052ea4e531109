"""Deformable attention as a torch operator, over emulated CUDA kernels that here serve CPU tensors."""

import sys
from pathlib import Path

import pytest
import torch
from attention_cases import AttentionCase, reference, reference_gradients
from cuda_emulation_build import COMPILER, build
from torch import Tensor

import ops_dcnv3
from ops_dcnv3 import attention, backends, ms_deform_attn

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")
FORWARD, BACKWARD = torch.ops.ops_dcnv3.ms_deform_attn_forward, torch.ops.ops_dcnv3.ms_deform_attn_backward
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(scope="module", autouse=True)
def emulated_binding() -> None:
    torch_folder = Path(torch.__file__).parent
    flags = ["-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_folder / "include")]
    flags.append(f"-L{torch_folder / 'lib'}")
    torch.ops.load_library(build("emulated_attention_binding.cpp", *flags, shared=True, libraries=["-ltorch_cpu"]))


@pytest.fixture
def emulated_backend(monkeypatch) -> None:
    monkeypatch.setattr(backends, "select", lambda name, device: "cuda")


def check(grad_output: Tensor, *inputs: Tensor) -> None:
    results = (FORWARD(*inputs), *BACKWARD(grad_output, *inputs))
    expected = (reference(*inputs), *reference_gradients(grad_output, *inputs))
    tolerance = 8 * torch.finfo(grad_output.dtype).eps
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.dtype == grad_output.dtype and ours.is_contiguous()
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


@TYPES
def test_every_type_is_computed_in_its_own_precision(dtype):
    *inputs, grad_output = AttentionCase(depth=16).tensors(dtype)
    check(grad_output, *inputs)


def test_strided_tensors_are_read_correctly():
    *inputs, grad_output = AttentionCase().tensors(torch.float32)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (grad_output, *inputs)]
    assert not any(x.is_contiguous() for x in strided)
    check(*strided)


def test_views_that_begin_off_a_vector_boundary_are_read_correctly():
    *inputs, grad_output = AttentionCase().tensors(torch.float16)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in (grad_output, *inputs)]
    assert all(x.data_ptr() % 16 for x in shifted)
    check(*shifted)


def test_an_expanded_output_gradient_is_read_correctly():
    *inputs, grad_output = AttentionCase().tensors(torch.float32)
    check(grad_output[:1, :1, :1].expand_as(grad_output), *inputs)


@pytest.mark.parametrize(
    "case",
    [AttentionCase(images=0), AttentionCase(queries=0), AttentionCase(depth=0), AttentionCase(heads=0)],
    ids=["images", "queries", "channels", "heads"],
)
@TYPES
def test_empty_sizes_give_empty_outputs_and_zero_gradients(case, dtype):
    *inputs, grad_output = case.tensors(dtype)
    assert FORWARD(*inputs).shape == case.output_shape
    gradients = BACKWARD(grad_output, *inputs)
    assert [x.shape for x in gradients] == [x.shape for x in (inputs[0], *inputs[2:])]
    assert not any(x.any() for x in gradients)


def test_it_passes_opcheck_and_gradcheck():
    value, shapes, *rest, _ = AttentionCase(depth=3, points=3, queries=3).tensors(torch.float64)
    value, *rest = (x.requires_grad_() for x in (value, *rest))
    torch.library.opcheck(FORWARD, (value, shapes, *rest))
    assert torch.autograd.gradcheck(lambda v, *r: FORWARD(v, shapes, *r), (value, *rest), atol=1e-6)


def test_a_compiled_graph_is_whole_and_gives_the_same_gradients(emulated_backend):
    value, shapes, *rest, grad_output = AttentionCase().tensors(torch.float32)
    gradients = []
    for function in (ms_deform_attn, torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in (value, *rest)]
        function(leaves[0], shapes, *leaves[1:]).backward(grad_output)
        gradients.append([x.grad for x in leaves])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_a_second_derivative_is_refused_in_words():
    value, shapes, *rest, _ = AttentionCase(depth=2).tensors(torch.float64)
    output = FORWARD(value.requires_grad_(), shapes, *rest)
    (gradient,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="it has no second derivative; omit create_graph=True"):
        gradient.sum().backward()


def test_autocast_promotes_to_the_widest_type():
    value, shapes, locations, weights, _ = AttentionCase().tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = FORWARD(value.bfloat16(), shapes, locations, weights.half())
    expected = reference(value.bfloat16(), shapes, locations, weights.half())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: lambda x: x.flatten(2)}, r"value must have shape \(N, keys, heads, D\); got \(2, 47, 16\)"),
        ({0: lambda x: x.long(), 2: lambda x: x.long(), 3: lambda x: x.long()}, "expected float32, float64"),
        ({1: lambda x: x.int()}, "spatial_shapes must be of int64"),
        ({1: lambda x: x.flatten()}, r"spatial_shapes must have shape \(levels, 2\); got \(4\)"),
        ({1: lambda x: x[:1]}, "sampling_locations must have shape"),
        ({2: lambda x: x.double()}, "sampling_locations must be of the type of value; convert it"),
        ({2: lambda x: x[:1]}, "sampling_locations must have shape"),
        ({2: lambda x: x[..., 0]}, "sampling_locations must have shape .*; got .* for a value"),
        ({3: lambda x: x.half()}, "attention_weights must be of the type of value; convert it"),
        ({3: lambda x: x[..., :3]}, r"attention_weights must have shape \(N, queries, heads, levels, points\)"),
    ],
)
def test_the_operator_itself_refuses_what_does_not_fit(change, message):
    *inputs, grad_output = AttentionCase().tensors(torch.float32)
    inputs = [change.get(i, lambda x: x)(x) for i, x in enumerate(inputs)]
    with pytest.raises(RuntimeError, match=message):
        FORWARD(*inputs)
    with pytest.raises(RuntimeError, match=message):
        BACKWARD(grad_output, *inputs)


@pytest.mark.parametrize(
    ("change", "message"), [(lambda x: x[:1], "must have shape"), (lambda x: x.double(), "of the type of value")]
)
def test_the_operator_itself_refuses_an_output_gradient_that_does_not_fit(change, message):
    *inputs, grad_output = AttentionCase().tensors(torch.float32)
    with pytest.raises(RuntimeError, match=f"grad_output .*{message}"):
        BACKWARD(change(grad_output), *inputs)


def test_shapes_may_be_python_integers_and_are_copied_to_the_device_once(emulated_backend):
    case = AttentionCase()
    value, shapes, *rest, _ = case.tensors(torch.float32)
    expected = ms_deform_attn(value, shapes, *rest)
    for listed in (case.shapes, [list(pair) for pair in case.shapes], [torch.Size(pair) for pair in case.shapes]):
        assert torch.equal(ms_deform_attn(value, listed, *rest), expected)
    assert attention._on_device(case.shapes, value) is attention._on_device(shapes.tolist(), value)
    with pytest.raises(ValueError, match="make 12 keys, but value has 47"):
        ms_deform_attn(value, [(3, 4)], *rest)


def test_shapes_first_seen_in_inference_mode_serve_training_later(emulated_backend):
    case = AttentionCase(((2, 9), (3, 7)))
    value, _, *rest, _ = case.tensors(torch.float32)
    with torch.inference_mode():
        expected = ms_deform_attn(value, case.shapes, *rest)
    output = ms_deform_attn(value.requires_grad_(), case.shapes, *rest)
    output.sum().backward()
    assert torch.equal(output, expected) and value.grad.any()


def test_tensors_of_several_types_are_computed_in_the_widest(emulated_backend):
    value, shapes, locations, weights, _ = AttentionCase().tensors(torch.float32)
    output = ms_deform_attn(value.half(), shapes, locations, weights)
    assert output.dtype == torch.float16
    assert torch.equal(output, FORWARD(value.half().float(), shapes, locations, weights).half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_mmcvs_autograd_function_uses_the_kernels(emulated_backend, monkeypatch, dtype):
    pytest.importorskip("mmcv")
    from internimage.mm import mmcv_ext

    mmcv_ext.install()
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    module = sys.modules["internimage.ms_deform_attn"]
    monkeypatch.setattr(module, "dcnv3", None)  # what computes it without the kernels
    for place in (module, mmcv_ext):
        monkeypatch.setattr(place, "has_kernel", lambda value: True)
    value, shapes, *rest, grad_output = AttentionCase().tensors(dtype)
    leaves = [x.requires_grad_() for x in (value, *rest)]
    starts = torch.tensor([0, 35])
    output = MultiScaleDeformableAttnFunction.apply(leaves[0], shapes, starts, *leaves[1:], 64)
    output.backward(grad_output)
    tolerance = 8 * torch.finfo(dtype).eps
    expected = (reference(value, shapes, *rest), *reference_gradients(grad_output, value, shapes, *rest))
    for ours, theirs in zip((output, *(x.grad for x in leaves)), expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


def test_without_the_cuda_backend_the_error_says_why():
    *inputs, _ = AttentionCase().tensors(torch.float32)
    with pytest.raises(ops_dcnv3.BackendError, match="needs the CUDA backend: value is on cpu"):
        ms_deform_attn(*inputs)


@pytest.fixture
def deterministic():
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


def test_the_backward_on_cuda_is_refused_where_determinism_is_asked_for(deterministic, monkeypatch):
    value, shapes, *rest, _ = AttentionCase().tensors(torch.float32)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    output = FORWARD(value.requires_grad_(), shapes, *rest)
    deterministic(True)
    with pytest.raises(RuntimeError, match="ms_deform_attn does not have a deterministic implementation"):
        output.sum().backward(retain_graph=True)
    deterministic(True, warn_only=True)
    with pytest.warns(UserWarning, match="ms_deform_attn does not have a deterministic implementation"):
        output.sum().backward()
    assert value.grad.any()


def test_the_backward_is_marked_as_not_deterministic():
    assert torch.Tag.nondeterministic_bitwise in BACKWARD.default.tags
    assert torch.Tag.nondeterministic_bitwise not in FORWARD.default.tags
