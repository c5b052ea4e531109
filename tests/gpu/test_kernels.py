"""The CUDA kernels against the float64 gather core: every type, width, window and switch."""

import pytest
import torch
from gpu_cases import (
    BACKEND,
    DEVICE,
    DTYPES,
    PLAIN,
    TOLERANCE,
    assert_close,
    draw,
    dtype_id,
    operator,
    poisoned_memory,
    reference,
)

from ops_dcnv3 import dcnv3
from ops_dcnv3.reference import Geometry

VARIATIONS = {
    "stride 2": Geometry(3, 3, 2, 2, 1, 1, 1, 1, 3, 1.0, False, True),
    "no padding": Geometry(3, 3, 1, 1, 0, 0, 1, 1, 3, 1.0, False, False),
    "wide padding": Geometry(3, 3, 1, 1, 4, 3, 1, 1, 2, 1.0, True, True),
    "dilation 2": Geometry(3, 3, 1, 1, 2, 2, 2, 2, 2, 1.0, False, True),
    "5x5, strided, dilated": Geometry(5, 5, 2, 1, 2, 3, 1, 2, 2, 1.0, True, True),
    "unequal in everything": Geometry(3, 5, 1, 2, 2, 1, 2, 1, 1, 1.0, False, False),
    "even window": Geometry(2, 4, 1, 1, 1, 2, 1, 1, 2, 1.0, False, True),
    "one point": Geometry(1, 1, 1, 1, 0, 0, 1, 1, 5, 1.0, False, False),
    "offset scale 2": Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 2.0, False, True),
    "offset scale 0.7": Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 0.7, True, False),
}
# Channels at 1/4, 1/8, 1/16 and 1/32 of an image of 64 pixels, and groups: InternImage-T; and wide groups as in H.
STAGES = {
    "T, stage 1": (4, 16, 16),
    "T, stage 2": (8, 8, 16),
    "T, stage 3": (16, 4, 16),
    "T, stage 4": (32, 2, 16),
    "H, stage 1": (10, 16, 32),
}


def check(geometry, dtype, **sizes):
    inputs = draw(geometry, dtype=dtype, **sizes)
    with poisoned_memory():
        results = operator(inputs, geometry)
    assert all(tensor.dtype == dtype for tensor in results)
    assert_close(results, reference(inputs, geometry), TOLERANCE[dtype])


@pytest.mark.parametrize("remove_center", [False, True], ids=["full", "no_centre"])
@pytest.mark.parametrize("logits", [False, True], ids=["weights", "logits"])
@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("depth", [1, 3, 4, 6, 8, 12, 16, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_output_and_gradients_equal_the_reference(dtype, depth, window, logits, remove_center):
    half = window // 2
    geometry = Geometry(window, window, 1, 1, half, half, 1, 1, 2, 1.0, remove_center, logits)
    check(geometry, dtype, depth=depth, seed=depth)


@pytest.mark.parametrize("geometry", VARIATIONS.values(), ids=VARIATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_strides_paddings_dilations_and_scales_equal_the_reference(dtype, geometry):
    check(geometry, dtype, size=(2, 11, 10), depth=8)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_the_stages_of_models_equal_the_reference(dtype, stage):
    groups, size, depth = STAGES[stage]
    check(PLAIN._replace(groups=groups), dtype, size=(3, size, size), depth=depth)


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0], ids=["near", "around", "far"])
@pytest.mark.parametrize("variation", ["plain", "stride 2", "dilation 2"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_maps_of_many_blocks_equal_the_reference_wherever_their_points_are(dtype, variation, spread):
    geometry = VARIATIONS.get(variation, PLAIN)
    check(geometry, dtype, size=(2, 33, 38), spread=spread)


@pytest.mark.parametrize("depth", [4, 8, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_maps_of_many_blocks_equal_the_reference_for_any_width_of_a_group(dtype, depth):
    check(PLAIN._replace(groups=3, remove_center=depth == 8), dtype, size=(1, 21, 30), depth=depth)


@pytest.mark.parametrize("depth", [17, 24, 70, 280])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_groups_of_many_and_odd_channels_equal_the_reference(dtype, depth):
    check(PLAIN._replace(groups=1), dtype, size=(1, 4, 3), depth=depth)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_one_pixel_equals_the_reference(dtype):
    check(PLAIN, dtype, size=(1, 1, 1))


@pytest.mark.parametrize("logits", [False, True], ids=["weights", "logits"])
def test_gradients_equal_finite_differences(logits):
    geometry = PLAIN._replace(offset_scale=1.3)
    leaves = [t.requires_grad_() for t in draw(geometry, (1, 4, 3), depth=3, dtype=torch.float64, seed=1)[:3]]

    def call(*tensors):
        return dcnv3(*tensors, groups=2, offset_scale=1.3, mask_is_logits=logits, backend=BACKEND)

    # Atomic sums come in any order.
    assert torch.autograd.gradcheck(call, leaves, atol=1e-6, nondet_tol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_an_empty_batch_gives_empty_results(dtype):
    results = operator(draw(size=(0, 9, 7), dtype=dtype), PLAIN)
    assert [tuple(tensor.shape) for tensor in results] == [(0, 9, 7, 32), (0, 9, 7, 32), (0, 9, 7, 36), (0, 9, 7, 18)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_no_channels_give_gradients_of_zero(dtype):
    with poisoned_memory():
        output, grad_input, grad_offset, grad_mask = operator(draw(depth=0, dtype=dtype), PLAIN)
    assert output.shape == grad_input.shape == (2, 9, 7, 0)
    assert not grad_offset.any() and not grad_mask.any()  # NaN would be true


def test_a_long_sum_of_half_precision_gradients_is_accumulated_in_float32():
    """All 1024 outputs sample one pixel: in half precision the sum would stop growing at 2048 or before."""
    size = 32
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    offset = torch.stack([16 - columns, 16 - rows], -1)[None].to(DEVICE)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.ones(1, size, size, 1, dtype=dtype, device=DEVICE, requires_grad=True)
        mask = torch.full((1, size, size, 1), 3.0, dtype=dtype, device=DEVICE)
        output = dcnv3(x, offset.to(dtype), mask, kernel_size=1, padding=0, backend=BACKEND)
        output.backward(torch.ones_like(output))
        assert x.grad[0, 16, 16, 0] == 3072 and x.grad.sum() == 3072
