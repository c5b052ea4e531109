"""The operator's semantics, on every backend that this machine has."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import ops_dcnv3
from golden import image, operator_case, relative_error
from machine import BACKENDS, device_of
from ops_dcnv3 import backends, dcnv3
from ops_dcnv3.functions import DCNv3Function, dcnv3_core_pytorch
from ops_dcnv3.reference import Geometry, gather_core, grid_sample_core

needs_kernels = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled CPU kernels on this machine")
# Measured: one rounding of the output, at most 2 ** -9 and 2 ** -12 of the largest value.
HALF_TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}


def run(case, backend, dtype=torch.float64, **overrides):
    """Output and the three gradients of an operator case, computed where the backend runs."""
    g = case.geometry
    device = device_of(backend)
    inputs = [tensor.to(device, dtype).requires_grad_() for tensor in case.inputs]
    arguments = {
        "kernel_size": (g.kernel_h, g.kernel_w),
        "stride": (g.stride_h, g.stride_w),
        "padding": (g.padding_h, g.padding_w),
        "dilation": (g.dilation_h, g.dilation_w),
        "groups": g.groups,
        "offset_scale": g.offset_scale,
        "remove_center": g.remove_center,
        "backend": backend,
        **overrides,
    }
    output = dcnv3(*inputs, **arguments)
    grads = torch.autograd.grad(output, inputs, case.grad_output.to(device, dtype))
    return tuple(tensor.cpu() for tensor in (output, *grads))


def small_inputs(dtype=torch.float64, seed=0, height=5, width=4, groups=2, depth=3, points=9, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)  # noqa: E731
    return [
        draw(2, height, width, groups * depth).requires_grad_(),
        draw(2, height, width, groups * points * 2).requires_grad_(),
        draw(2, height, width, groups * points).requires_grad_(),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", range(6))
def test_float32_outputs_and_gradients_equal_the_original_project(index, backend):
    case = operator_case(index)
    for actual, expected in zip(run(case, backend, torch.float32), (case.output, *case.grads), strict=True):
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("index", range(6))
def test_backends_and_cores_agree_in_float64(index, logits):
    case = operator_case(index)
    geometry = case.geometry._replace(mask_is_logits=logits)
    leaves = [tensor.clone().requires_grad_() for tensor in case.inputs]
    output = gather_core(*leaves, geometry)
    expected = (output, *torch.autograd.grad(output, leaves, case.grad_output))
    for backend in BACKENDS:
        for actual, reference in zip(run(case, backend, mask_is_logits=logits), expected, strict=True):
            assert relative_error(actual, reference) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("logits", [False, True])
def test_gradients_equal_finite_differences(backend, logits):
    def operator(*tensors):
        return dcnv3(*tensors, groups=2, offset_scale=1.3, backend=backend, mask_is_logits=logits)

    inputs = small_inputs(height=4, width=3, device=device_of(backend))
    # On a GPU atomic sums come in any order.
    assert torch.autograd.gradcheck(operator, inputs, atol=1e-6, nondet_tol=1e-10 if inputs[0].is_cuda else 0.0)


@needs_kernels
def test_second_derivatives_are_refused_rather_than_zero():
    tensors = [torch.randn(1, 4, 4, channels, requires_grad=True) for channels in (8, 18, 9)]
    grad = torch.autograd.grad((dcnv3(*tensors) ** 2).sum(), tensors[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad**2).sum().backward()


def test_the_registered_operators_pass_opcheck():
    assert backends.select("cpu", torch.device("cpu")) == "cpu"
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.0, False, True)
    inputs = small_inputs(torch.float32)
    torch.library.opcheck(torch.ops.ops_dcnv3.forward, (*inputs, *geometry))
    grad_output = torch.ones(2, 5, 4, 6)
    plain = [tensor.detach() for tensor in inputs]
    torch.library.opcheck(torch.ops.ops_dcnv3.backward, (grad_output, *plain, *geometry))


ODD = [float("nan"), float("inf"), float("-inf")]
ODD_GEOMETRY = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.5, False, False)
# On a GPU sums come in any order, and half types may be blended before they are widened (as in tests/gpu).
ODD_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def with_odd_points(dtype, odd, device="cpu"):
    """Tensors with `odd` as x, as y, and as both of some points of group 0; which points count, `(N, Ho, Wo, G, P)`."""
    input, offset, mask = (tensor.detach() for tensor in small_inputs())
    # Quarters plus an eighth: exact in every type, and never on a whole pixel, where the offset's gradient jumps.
    offset = ((2 * offset * 4).round() / 4 + 0.125).view(*offset.shape[:3], 2, 9, 2)
    offset[:, ::2, :, 0, 1, 0] = offset[:, :, ::2, 0, 4, 1] = odd
    offset[:, 1, 1, 0] = odd  # a pixel without a point that counts
    counts = offset.isfinite().all(-1)
    tensors = input, offset.flatten(3), mask
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors], counts


def without_odd_points(tensors, counts, logits):
    """Output and gradients of half its square, in float64; weights are zero where points do not count (after a softmax,
    so these keep their share of it)."""
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    input, offset, mask = leaves
    weights = mask.view(counts.shape)
    weights = (weights.softmax(-1) if logits else weights) * counts
    offset = torch.where(counts[..., None], offset.view(*counts.shape, 2), 0)
    output = gather_core(input, offset.flatten(3), weights.flatten(3), ODD_GEOMETRY)
    return output, *torch.autograd.grad(output, leaves, output.detach().to(tensors[0].dtype).double())


@pytest.mark.parametrize("backend", [*BACKENDS, "gather_core"])
@pytest.mark.parametrize("dtype", ODD_TOLERANCE)
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("odd", ODD)
def test_points_that_are_not_finite_have_no_weight_and_no_gradient(odd, logits, dtype, backend):
    device = "cpu" if backend == "gather_core" else device_of(backend)
    leaves, counts = with_odd_points(dtype, odd, device)
    expected = without_odd_points(leaves, counts, logits)
    if backend == "gather_core":
        output = gather_core(*leaves, ODD_GEOMETRY._replace(mask_is_logits=logits))
    else:
        output = dcnv3(*leaves, groups=2, offset_scale=1.5, backend=backend, mask_is_logits=logits)
    grads = torch.autograd.grad(output, leaves, expected[0].detach().to(device, dtype))
    for actual, reference in zip((output, *grads), expected, strict=True):
        assert relative_error(actual.cpu(), reference) < ODD_TOLERANCE[dtype]
    assert not grads[1].view(*counts.shape, 2)[~counts].any()
    assert logits or not grads[2].view(counts.shape)[~counts].any()


@pytest.mark.parametrize("odd", ODD)
def test_compiled_code_leaves_out_points_that_are_not_finite(odd):
    leaves, counts = with_odd_points(torch.float32, odd)
    expected = without_odd_points(leaves, counts, True)
    operator = torch.compile(lambda *t: dcnv3(*t, groups=2, offset_scale=1.5, backend="torch", mask_is_logits=True))
    output = operator(*leaves)
    grads = torch.autograd.grad(output, leaves, expected[0].detach().float())
    for actual, reference in zip((output, *grads), expected, strict=True):
        assert relative_error(actual, reference) < ODD_TOLERANCE[torch.float32]


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of each check of a shape
def test_exported_graphs_of_grid_sample_have_no_nodes_for_points_that_are_not_finite():
    layer = ops_dcnv3.DCNv3(8, group=2, backend="torch").eval()
    x = image(1, 5, 5, 8, seed=0)
    exported = str(torch.export.export(layer, (x,)).graph)
    traced = str(torch.jit.trace(layer, x).inlined_graph)
    assert "aten.grid_sampler" in exported and "aten.where" not in exported and "aten.abs" not in exported
    assert "aten::grid_sampler" in traced and "aten::where" not in traced and "aten::abs" not in traced


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF_TOLERANCE)
def test_half_types_sample_in_float32_on_planes_beyond_32767_pixels(dtype, backend):
    # 190 x 190 pixels: half-precision grid_sample on CPU fails from 182 x 182 on.
    case_inputs = image(1, 190, 190, 8, seed=1), 2 * image(1, 190, 190, 18, seed=2), image(1, 190, 190, 9, seed=3)
    rounded = [tensor.to(dtype) for tensor in case_inputs]
    expected = gather_core(*(t.double() for t in rounded), Geometry(3, 3, 1, 1, 1, 1, 1, 1, 1, 1.0, False, True))
    leaves = [tensor.to(device_of(backend)).requires_grad_() for tensor in rounded]
    output = dcnv3(*leaves, backend=backend, mask_is_logits=True)
    assert output.dtype == dtype
    assert relative_error(output.cpu(), expected) < HALF_TOLERANCE[dtype]
    output.float().square().mean().backward()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.dtype == dtype for leaf in leaves)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 9)),
    groups=st.integers(1, 3),
    depth=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    scale=st.floats(0.25, 2.0),
    logits=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_gives_the_gather_cores_result(
    size, groups, depth, kernel, stride, padding, dilation, scale, logits, seed
):
    batch, height, width = size
    remove_center = seed % 2 == 1 and kernel[0] % 2 == kernel[1] % 2 == 1 and kernel != (1, 1)
    geometry = Geometry(*kernel, *stride, *padding, *dilation, groups, scale, remove_center, logits)
    out = geometry.output_size(height, width)
    if min(out) < 1:
        out = (1, 1)
    x = image(batch, height, width, groups * depth, seed=seed).double()
    offset = 2 * image(batch, *out, groups * geometry.points * 2, seed=seed + 1).double()
    mask = image(batch, *out, groups * geometry.points, seed=seed + 2).double()
    arguments = (kernel, stride, padding, dilation, groups, scale, remove_center)
    if min(geometry.output_size(height, width)) < 1:
        with pytest.raises(ValueError, match="enlarge the input or the padding"):
            dcnv3(x, offset, mask, *arguments)
        return
    expected = gather_core(x, offset, mask, geometry)
    for backend in BACKENDS:
        if backend == "triton":  # compiles anew for every geometry; its own tests have a choice of them
            continue
        tensors = [tensor.to(device_of(backend)) for tensor in (x, offset, mask)]
        actual = dcnv3(*tensors, *arguments, backend=backend, mask_is_logits=logits)
        torch.testing.assert_close(actual.cpu(), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs_give_the_same_result(backend):
    contiguous = [tensor.detach() for tensor in small_inputs(device=device_of(backend))]
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in contiguous]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(
        dcnv3(*strided, groups=2, backend=backend), dcnv3(*contiguous, groups=2, backend=backend), atol=0, rtol=0
    )


def test_zero_offsets_and_an_even_mask_average_the_neighbourhood():
    x = image(1, 6, 7, 4, seed=0).double()
    output = dcnv3(x, torch.zeros(1, 6, 7, 18).double(), torch.full((1, 6, 7, 9), 1 / 9).double())
    expected = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(output, expected)


def test_points_run_column_by_column_with_x_before_y():
    x = torch.arange(25.0).reshape(1, 5, 5, 1)
    mask = torch.zeros(1, 5, 5, 9)
    mask[..., 1] = 1  # second point: first column, middle row
    offset = torch.zeros(1, 5, 5, 18)
    offset[..., 2] = 1  # x of the second point
    assert dcnv3(x, offset, mask)[0, 2, 2, 0] == x[0, 2, 2, 0]
    offset[..., 2:4] = torch.tensor([0.0, 1.0])
    assert dcnv3(x, offset, mask)[0, 2, 2, 0] == x[0, 3, 1, 0]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_promotes_and_samples_in_float32(dtype):
    assert backends.select("cpu", torch.device("cpu")) == "cpu"
    x, offset, mask = (tensor.detach() for tensor in small_inputs(torch.float32))
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.0, False, False)
    with torch.autocast("cpu", dtype=dtype):
        mixed = torch.ops.ops_dcnv3.forward(x.to(dtype), offset, mask, *geometry)
        half = torch.ops.ops_dcnv3.forward(x.to(dtype), offset.to(dtype), mask.to(dtype), *geometry)
    assert mixed.dtype == torch.float32 and half.dtype == dtype
    torch.testing.assert_close(mixed, grid_sample_core(x.to(dtype).float(), offset, mask, geometry))


def test_compiled_code_has_no_graph_break_and_the_same_result():
    def operator(*tensors):
        return dcnv3(*tensors, groups=2).sin()

    inputs = small_inputs(torch.float32)
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), operator(*inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_exported_programs_compute_the_same(backend):
    device = device_of(backend)
    layer = ops_dcnv3.DCNv3(8, group=2, backend=backend).eval().to(device)
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    x = image(2, 6, 5, 8, seed=4).to(device)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


def test_the_layer_starts_as_an_undeformed_even_kernel():
    layer = ops_dcnv3.DCNv3(8, group=2)
    assert not layer.offset.weight.any() and not layer.mask.weight.any()
    assert layer.input_proj.weight.std() > 0.1
    x = image(1, 5, 5, 8, seed=5)
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    expected = layer.output_proj(F.avg_pool2d(value, 3, stride=1, padding=1).permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_center_feature_scale_blends_in_the_value_projection():
    layer = ops_dcnv3.DCNv3(8, group=2, center_feature_scale=True)
    layer.center_feature_scale_proj_bias.data.fill_(50.0)  # a gate of one passes the values alone
    x = image(1, 5, 5, 8, seed=6)
    torch.testing.assert_close(layer(x), layer.output_proj(layer.input_proj(x)))


def test_a_strided_layer_halves_the_resolution():
    assert ops_dcnv3.DCNv3(8, group=2, stride=2)(image(1, 7, 6, 8, seed=7)).shape == (1, 4, 3, 8)


def test_the_layer_can_be_copied_and_scripts_of_the_original_import_it():
    from ops_dcnv3.modules import DCNv3, DCNv3_pytorch

    layer = DCNv3_pytorch(8, group=2)
    assert isinstance(layer, DCNv3) and layer.backend == "torch"
    x = image(1, 4, 4, 8, seed=8)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


def test_the_originals_functions_take_their_own_argument_order():
    x, offset, mask = (tensor.detach() for tensor in small_inputs(torch.float32))
    expected = dcnv3(x, offset, mask, groups=2, offset_scale=1.5)
    arguments = (3, 3, 1, 1, 1, 1, 1, 1, 2, 3, 1.5)
    torch.testing.assert_close(DCNv3Function.apply(x, offset, mask, *arguments, 256, 0), expected)
    torch.testing.assert_close(dcnv3_core_pytorch(x, offset, mask, *arguments, 0), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 4}, "groups must divide the channels"),
        ({"kernel_size": 5}, "offset must have shape"),
        ({"kernel_size": 2, "remove_center": True}, "odd kernel sizes"),
        ({"stride": 0}, "stride must be an int or a pair"),
        ({"padding": (1, 2, 3)}, "padding must be an int or a pair"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dcnv3(*small_inputs(), **{"groups": 2, **change})


def test_the_layer_asks_for_channels_last():
    with pytest.raises(ValueError, match=r"\(N, H, W, 8\); got \(1, 8, 5, 5\)"):
        ops_dcnv3.DCNv3(8, group=2)(torch.zeros(1, 8, 5, 5))
    with pytest.raises(ValueError, match="channels come second: pass input.permute"):
        ops_dcnv3.DCNv4(8, group=2)(torch.zeros(1, 8, 5, 5))


def test_what_is_no_tensor_and_no_size_is_refused_by_name():
    input, offset, mask = torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 4, 18), torch.zeros(1, 4, 4, 9)
    with pytest.raises(TypeError, match="offset must be a tensor; got ndarray"):
        dcnv3(input, offset.numpy(), mask)
    with pytest.raises(ValueError, match="kernel_size must be an int or a pair"):
        dcnv3(input, offset, mask, kernel_size=3.0)


def test_integer_tensors_are_refused_by_name():
    x, offset, mask = small_inputs()
    with pytest.raises(TypeError, match="input must be float64"):
        dcnv3(x.detach().long(), offset, mask, groups=2)


def test_an_unknown_backend_is_refused():
    with pytest.raises((ValueError, ops_dcnv3.BackendError), match="gpu"):
        dcnv3(*small_inputs(), groups=2, backend="gpu")


def test_dcnv4_is_dcnv3_with_offsets_and_weights_in_one_padded_row():
    x, offset, mask = (tensor.detach() for tensor in small_inputs(torch.float32))
    rows = torch.cat([offset.unflatten(3, (2, 18)), mask.unflatten(3, (2, 9))], dim=-1).flatten(3)
    padded = F.pad(rows, (0, 2), value=float("nan"))  # 54 numbers, padded to 56, which are not read
    torch.testing.assert_close(ops_dcnv3.dcnv4(x, padded, groups=2), dcnv3(x, offset, mask, groups=2))
    with pytest.raises(ValueError, match=r"\(N, Ho, Wo, 56\)"):
        ops_dcnv3.dcnv4(x, rows, groups=2)


@pytest.mark.parametrize("kwargs", [{}, {"dw_kernel_size": 3}, {"without_pointwise": True}, {"remove_center": True}])
def test_the_dcnv4_layer_takes_sequences_and_maps(kwargs):
    layer = ops_dcnv3.DCNv4(16, group=2, **kwargs)
    torch.nn.init.normal_(layer.offset_mask.weight)
    x = image(2, 5, 4, 16, seed=9)
    expected = layer(x)
    assert expected.abs().max() > 0
    torch.testing.assert_close(layer(x.flatten(1, 2), (5, 4)), expected.flatten(1, 2))
    with pytest.raises(ValueError, match="pass its"):
        layer(x.flatten(1, 2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_size": 5}, "pad must be 2"),
        ({"dilation": 2}, "pad must be 2 .*got pad 1"),
        ({"kernel_size": 4, "dw_kernel_size": 3}, "must both be odd"),
        ({"kernel_size": (3, 5)}, "one positive int"),
        ({"channels": 0}, "group must divide"),
    ],
)
def test_layers_whose_sizes_do_not_fit_together_are_refused_when_they_are_made(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ops_dcnv3.DCNv3(**{"channels": 16, **kwargs})


@pytest.mark.parametrize("sizes", [(5, 5, 2, 1), (4, 4, 1, 1), (3, 5, 1, 1), (5, 3, 4, 2)])
def test_layers_of_other_kernels_keep_the_resolution(sizes):
    kernel_size, dw_kernel_size, pad, dilation = sizes
    layer = ops_dcnv3.DCNv3(16, kernel_size, dw_kernel_size, pad=pad, dilation=dilation)
    assert layer(torch.randn(1, 9, 7, 16)).shape[:3] == layer.dw_conv(torch.randn(1, 16, 9, 7)).shape[:3]


def test_forward_mode_derivatives_equal_finite_differences():
    def operator(*tensors):
        return dcnv3(*tensors, groups=2, offset_scale=1.3, mask_is_logits=True)

    assert torch.autograd.gradcheck(operator, small_inputs(height=4, width=3), check_forward_ad=True, atol=1e-6)


@pytest.mark.parametrize("transform", ["grad", "jvp", "vjp", "vmap"])
def test_function_transforms_see_the_operator_as_autograd_does(transform):
    inputs = [tensor.detach() for tensor in small_inputs()]

    def operator(*tensors):
        return dcnv3(*tensors, groups=2)

    if transform == "vmap":
        images = [torch.stack([tensor, 2 * tensor]) for tensor in inputs]
        expected = torch.stack([operator(*(tensor[i] for tensor in images)) for i in range(2)])
        torch.testing.assert_close(torch.func.vmap(operator)(*images), expected)
        return
    leaves = [tensor.requires_grad_() for tensor in small_inputs()]
    output = operator(*leaves)
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(output, leaves, cotangent)
    if transform == "grad":
        found = torch.func.grad(lambda *tensors: (operator(*tensors) * cotangent).sum(), argnums=(0, 1, 2))(*inputs)
    elif transform == "vjp":
        found = torch.func.vjp(operator, *inputs)[1](cotangent)
    else:
        tangents = [torch.ones_like(tensor) for tensor in inputs]
        _, tangent = torch.func.jvp(operator, tuple(inputs), tuple(tangents))
        # <J t, c> = <t, J^T c>
        found, expected = [(tangent * cotangent).sum()], [sum(gradient.sum() for gradient in expected)]
    for actual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, reference)


@needs_kernels
def test_a_compiled_backend_asked_for_by_name_refuses_transforms_instead_of_dropping_tangents():
    inputs = [tensor.detach() for tensor in small_inputs()]
    with pytest.raises(RuntimeError, match="supports neither forward-mode derivatives nor torch.func transforms"):
        torch.func.jvp(lambda x: dcnv3(x, *inputs[1:], groups=2, backend="cpu"), (inputs[0],), (inputs[0],))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0], inputs[0])
        with pytest.raises(RuntimeError, match="use backend='torch'"):
            dcnv3(dual, *inputs[1:], groups=2, backend="cpu")
        plain = dcnv3(*inputs, groups=2, backend="cpu")  # no tangent among these
    assert torch.autograd.forward_ad._current_level == -1 and plain.shape == inputs[0].shape


@pytest.mark.parametrize("change", [{"offset_scale": float("nan")}, {"offset_scale": -1e12}, {"dilation": 2**40}])
def test_windows_that_cannot_be_counted_in_pixels_are_refused(change):
    with pytest.raises(ValueError, match="offset_scale must be finite, and kernel_size"):
        dcnv3(*(tensor.detach() for tensor in small_inputs()), groups=2, padding=change.get("dilation", 1), **change)
