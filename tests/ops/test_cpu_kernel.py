"""The C++ CPU kernels: every instruction set against a slow, obvious float64 reference."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from golden import operator_case, relative_error
from ops_dcnv3 import backends, dcnv3

pytestmark = pytest.mark.skipif(backends.status()["cpu"] is not None, reason="no compiled CPU kernels on this machine")
BEST = backends.cpu_capability()
CAPABILITIES = [name for name in ("portable", "avx2", "avx512") if backends.set_cpu_capability(name)]
backends.set_cpu_capability(BEST)
# Measured against float64 results of the same rounded inputs: one rounding of the result, and for small sums of
# float32 products their own error.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture
def best_afterwards():
    yield
    backends.set_cpu_capability(BEST)


@pytest.fixture(params=CAPABILITIES)
def capability(request):
    """Run the test with one instruction set."""
    assert backends.set_cpu_capability(request.param)
    yield request.param
    backends.set_cpu_capability(BEST)


def reference(
    input, offset, mask, grad_output, kernel, stride, padding, dilation, groups, scale, remove_center, logits
):
    """Output and three gradients in float64, one sampling point after the other, straight from the definition."""
    input, offset, mask = (tensor.detach().double().requires_grad_() for tensor in (input, offset, mask))
    batch, height, width, channels = input.shape
    depth = channels // groups
    taps = [(i, j) for i in range(kernel[1]) for j in range(kernel[0])]
    if remove_center:
        taps.remove((kernel[1] // 2, kernel[0] // 2))
    out_h, out_w = offset.shape[1:3]
    offsets = offset.view(batch, out_h, out_w, groups, len(taps), 2)
    weights = mask.view(batch, out_h, out_w, groups, len(taps))
    weights = weights.softmax(-1) if logits else weights
    centre = [dilation[axis] * (kernel[axis] - 1) // 2 for axis in (0, 1)]
    rows = []
    for n, ho, wo, g in (
        (n, ho, wo, g) for n in range(batch) for ho in range(out_h) for wo in range(out_w) for g in range(groups)
    ):
        total = torch.zeros(depth, dtype=torch.float64)
        for k, (i, j) in enumerate(taps):
            dx, dy = offsets[n, ho, wo, g, k]
            x = wo * stride[1] - padding[1] + centre[1] - centre[1] * scale + (i * dilation[1] + dx) * scale
            y = ho * stride[0] - padding[0] + centre[0] - centre[0] * scale + (j * dilation[0] + dy) * scale
            if not (-1 < x < width and -1 < y < height):
                continue
            x0, y0 = math.floor(x.item()), math.floor(y.item())
            # Shares written so that exactly on a pixel the derivative is the one to the right and below.
            right, down = x - x0, y - y0
            for column, row, share in (
                (x0, y0, (1 - right) * (1 - down)),
                (x0 + 1, y0, right * (1 - down)),
                (x0, y0 + 1, (1 - right) * down),
                (x0 + 1, y0 + 1, right * down),
            ):
                if 0 <= column < width and 0 <= row < height:
                    total = (
                        total + weights[n, ho, wo, g, k] * share * input[n, row, column, g * depth : (g + 1) * depth]
                    )
        rows.append(total)
    output = torch.stack(rows).view(batch, out_h, out_w, channels)
    # The zero connects tensors that no point inside the image uses.
    loss = (output * grad_output.double()).sum() + 0 * (input.sum() + offset.sum() + mask.sum())
    return output.detach(), *torch.autograd.grad(loss, (input, offset, mask))


def problem(
    seed,
    batch=1,
    height=5,
    width=4,
    groups=2,
    depth=16,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    scale=1.0,
    remove_center=False,
    logits=False,
    spread=1.5,
    odd=None,
    dtype=torch.float32,
):
    """Random tensors and the operator's arguments; every fifth coordinate of an offset is `odd`, if given."""
    generator = torch.Generator().manual_seed(seed)
    out = [
        (size + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a, size in enumerate((height, width))
    ]
    points = kernel[0] * kernel[1] - remove_center
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    tensors = (
        draw(batch, height, width, groups * depth),
        spread * draw(batch, *out, groups * points * 2),
        draw(batch, *out, groups * points),
        draw(batch, *out, groups * depth),
    )
    if odd is not None:
        tensors[1].view(-1)[::5] = odd
    return tensors, (kernel, stride, padding, dilation, groups, scale, remove_center, logits)


def run(tensors, arguments):
    """Output and three gradients of the kernels."""
    *geometry, logits = arguments
    inputs = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
    output = dcnv3(*inputs, *geometry, backend="cpu", mask_is_logits=logits)
    return output.detach(), *torch.autograd.grad(output, inputs, tensors[3])


def assert_as_reference(tensors, arguments):
    for actual, expected in zip(run(tensors, arguments), reference(*tensors, *arguments), strict=True):
        assert actual.dtype == tensors[0].dtype
        error = (actual.double() - expected).abs().max()
        assert error <= TOLERANCE[actual.dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [1, 4, 7, 8, 16, 24, 32, 37])
def test_any_depth_in_any_type_equals_the_reference(capability, depth, dtype):
    assert_as_reference(*problem(depth, depth=depth, dtype=dtype, height=4, width=3))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 1000),
            "batch": st.integers(1, 2),
            "height": st.integers(1, 7),
            "width": st.integers(1, 7),
            "groups": st.integers(1, 3),
            "depth": st.sampled_from([1, 3, 4, 16, 20]),
            "kernel": st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
            "stride": st.tuples(*[st.integers(1, 2)] * 2),
            "padding": st.tuples(*[st.integers(2, 4)] * 2),
            "dilation": st.tuples(*[st.integers(1, 2)] * 2),
            "scale": st.sampled_from([1.0, 2.0, 0.75]),
            "remove_center": st.booleans(),
            "logits": st.booleans(),
            "spread": st.sampled_from([0.3, 3.0, 100.0]),
            "odd": st.sampled_from([None, math.nan, math.inf, -math.inf]),
        }
    )
)
def test_any_geometry_equals_the_reference(choice):
    choice["remove_center"] &= choice["kernel"] != (1, 1)
    for size, kernel, padding, dilation in zip(
        (choice["height"], choice["width"]), choice["kernel"], choice["padding"], choice["dilation"], strict=True
    ):
        assume(size + 2 * padding > dilation * (kernel - 1))
    tensors, arguments = problem(**choice, dtype=torch.float64)
    # Exactly on the border the offset gradient is a matter of convention; random float64 offsets are never there.
    for name in CAPABILITIES:
        backends.set_cpu_capability(name)
        assert_as_reference(tensors, arguments)
        assert_as_reference([tensor.float() for tensor in tensors], arguments)
    backends.set_cpu_capability(BEST)


@pytest.mark.parametrize("index", range(6))
def test_original_project_cases_are_met(capability, index):
    case = operator_case(index)
    inputs = [tensor.float().requires_grad_() for tensor in case.inputs]
    g = case.geometry
    output = dcnv3(
        *inputs, (g.kernel_h, g.kernel_w), (g.stride_h, g.stride_w), (g.padding_h, g.padding_w),
        (g.dilation_h, g.dilation_w), g.groups, g.offset_scale, g.remove_center, "cpu",
    )  # fmt: skip
    grads = torch.autograd.grad(output, inputs, case.grad_output.float())
    for actual, expected in zip((output, *grads), (case.output, *case.grads), strict=True):
        assert relative_error(actual, expected) < 1e-5


def test_large_kernels_of_more_points_than_a_machine_word_has_bits(capability):
    assert_as_reference(*problem(0, height=3, width=4, groups=1, depth=4, kernel=(9, 9), padding=(4, 4)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -(2.0**31), 1e9, -1e9])
def test_offsets_that_are_huge_or_not_numbers_sample_nothing_and_get_no_gradient(capability, odd, logits, dtype):
    tensors, arguments = problem(0, height=3, width=4, depth=4, logits=logits, odd=odd, dtype=dtype)
    assert_as_reference(tensors, arguments)
    assert not run(tensors, arguments)[2].view(-1)[::5].any()


def test_a_point_exactly_on_row_minus_one_has_no_gradient(capability):
    tensors, arguments = problem(0, kernel=(1, 1), padding=(0, 0), groups=1, spread=0.0)
    tensors[1][0, 0, :, 1] = -1.0
    output, _, grad_offset, grad_mask = run(tensors, arguments)
    assert not output[0, 0].any() and not grad_offset[0, 0].any() and not grad_mask[0, 0].any()


def test_not_a_number_in_the_input_reaches_only_what_samples_it(capability):
    tensors, arguments = problem(0, height=9, width=9, spread=0.0)
    tensors[0][0, 0, 0] = math.nan
    output = run(tensors, arguments)[0]
    assert output[0, :2, :2].isnan().all() and not output[0, 2:].isnan().any() and not output[0, :, 2:].isnan().any()


def test_results_do_not_depend_on_the_number_of_threads(capability):
    tensors, arguments = problem(0, batch=3, height=40, width=40, groups=5)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(tensors, arguments))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_slices_of_a_wider_tensor_give_the_same_result(capability):
    (input, offset, mask, grad_output), arguments = problem(0, batch=2)
    merged = torch.cat([offset, mask], -1)
    sliced = merged[..., : offset.shape[-1]], merged[..., offset.shape[-1] :]
    flipped = input.flip(1).flip(1).transpose(1, 2).contiguous().transpose(1, 2)
    for actual, expected in zip(
        run((flipped, *sliced, grad_output), arguments), run((input, offset, mask, grad_output), arguments), strict=True
    ):
        assert torch.equal(actual, expected)


def test_fused_softmax_survives_large_logits(capability):
    tensors, arguments = problem(0, logits=True)
    tensors[2].mul_(100)
    actual = run(tensors, arguments)
    assert all(tensor.isfinite().all() for tensor in actual)
    assert relative_error(actual[0], reference(*tensors, *arguments)[0]) < 1e-5


def test_empty_batch_gives_empty_results(capability):
    tensors, arguments = problem(0, batch=0)
    output, *grads = run(tensors, arguments)
    assert output.shape == tensors[3].shape
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in tensors[:3]]


@pytest.mark.parametrize(("choice", "expected"), [("portable", "portable"), ("", BEST)])
def test_the_environment_chooses_the_instruction_set(choice, expected, monkeypatch, best_afterwards):
    monkeypatch.setenv("OPS_DCNV3_CPU_CAPABILITY", choice)
    assert backends._load_cpu() is None
    assert backends.cpu_capability() == expected


UNUSABLE = "OPS_DCNV3_CPU_CAPABILITY is 'avx9000'; this machine supports {}; set one of these, or unset it"


def test_an_unusable_instruction_set_is_an_error_that_names_the_usable_ones(monkeypatch, best_afterwards):
    monkeypatch.setenv("OPS_DCNV3_CPU_CAPABILITY", "avx9000")
    with pytest.raises(backends.BackendError) as error:
        backends._load_cpu()
    assert str(error.value) == UNUSABLE.format(", ".join(CAPABILITIES))
    assert not backends.set_cpu_capability("no such thing")


def test_the_report_ends_with_the_error_of_an_unusable_instruction_set():
    environment = {**os.environ, "OPS_DCNV3_CPU_CAPABILITY": "avx9000", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-m", "ops_dcnv3"], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "error: " + UNUSABLE.format(", ".join(CAPABILITIES))
