"""What a call keeps and needs of the device's memory, and tensors of more than 2^31 elements."""

import pytest
import torch
from gpu_cases import (
    BACKEND,
    DEVICE,
    DTYPES,
    PLAIN,
    TOLERANCE,
    Inputs,
    assert_close,
    draw,
    dtype_id,
    off_whole_pixels,
    operator,
    reference,
)

from ops_dcnv3 import dcnv3

LITTLE = 64 * 1024  # bytes that a call may need besides


def bytes_of(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_of(call):
    """What `call()` returns, and the bytes that were asked of the allocator at most at once meanwhile."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    result = call()
    return result, torch.cuda.memory_stats()["requested_bytes.all.peak"] - before


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_fifty_iterations_hold_no_more_than_one(dtype):
    inputs = draw(dtype=dtype, size=(2, 32, 32))
    operator(inputs, PLAIN)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        operator(inputs, PLAIN)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_forward_allocates_its_output_and_nothing_else(dtype):
    inputs = draw(dtype=dtype, size=(2, 64, 64))
    call = lambda: dcnv3(*inputs[:3], groups=2, mask_is_logits=True, backend=BACKEND)  # noqa: E731
    call()
    output, peak = peak_of(call)
    assert bytes_of(output) <= peak <= bytes_of(output) + LITTLE


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_backward_allocates_its_results_and_one_wide_copy_of_the_input_at_most(dtype):
    inputs = draw(dtype=dtype, size=(2, 64, 64))
    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    output = dcnv3(*leaves, groups=2, mask_is_logits=True, backend=BACKEND)
    call = lambda: torch.autograd.grad(output, leaves, inputs.grad_output, retain_graph=True)  # noqa: E731
    call()
    grads, peak = peak_of(call)
    # Half types sum the gradient of input in float32.
    wide = 4 * inputs.input.numel() if inputs.input.element_size() == 2 else 0
    assert bytes_of(*grads) <= peak <= bytes_of(*grads) + wide + LITTLE


def test_tensors_of_more_than_two_to_the_31_elements_are_addressed_to_their_ends():
    height, width, depth = 2900, 2901, 256
    free, _ = torch.cuda.mem_get_info()
    elements = height * width * depth
    assert elements > 2**31
    if free < 14 * elements:  # input, output, their gradients, one of them once more in float32, and change
        pytest.skip(f"needs {14 * elements / 2**30:.0f} GiB of device memory, {free / 2**30:.0f} are free")
    geometry = PLAIN._replace(groups=1)
    torch.manual_seed(0)

    def normal(channels):
        return torch.empty(1, height, width, channels, dtype=torch.float16, device=DEVICE).normal_()

    try:
        # Offsets of less than 6 pixels keep what a corner needs within it.
        leaves = [normal(depth), normal(18).clamp_(-6, 6), normal(9)]
        corners = slice(None, 40), slice(-40, None)
        for corner in corners:
            leaves[1][:, corner, corner] = off_whole_pixels(leaves[1][:, corner, corner], geometry)
        for leaf in leaves:
            leaf.requires_grad_()
        output = dcnv3(*leaves, mask_is_logits=True, backend=BACKEND)
        row = torch.randn(depth, device=DEVICE).half()
        grads = torch.autograd.grad(output, leaves, row.expand(output.shape))
        for corner in corners:
            crop = Inputs(*(leaf.detach()[:, corner, corner] for leaf in leaves), row.expand(1, 40, 40, depth))
            expected = reference(crop, geometry)
            # Within 20 pixels of the corner nothing depends on what lies outside the crop.
            inner = slice(None, 20) if corner.start is None else slice(-20, None)
            actual = [tensor[:, corner, corner][:, inner, inner] for tensor in (output.detach(), *grads)]
            wanted = [tensor[:, inner, inner] for tensor in expected]
            assert_close(actual, wanted, TOLERANCE[torch.float16])
    finally:
        torch.cuda.empty_cache()
