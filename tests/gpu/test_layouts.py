"""Tensors as models hand them over: views, strides, expanded gradients, mixed types; and DCNv4's rows."""

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
    operator,
    poisoned_memory,
    reference,
)

import ops_dcnv3
from ops_dcnv3 import dcnv3


def shifted(tensor):
    """The same values in storage that starts one element later than an aligned block."""
    storage = torch.full((tensor.numel() + 9,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = storage[1 : 1 + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    assert view.data_ptr() % 16 != 0 and view.is_contiguous()
    return view


def column_major(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def channels_first(tensor):
    return tensor.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def slice_of_wider(tensor):
    """The first channels of a wider tensor: rows are apart by more than their length."""
    return torch.nn.functional.pad(tensor, (0, 3), value=float("nan"))[..., : tensor.shape[-1]]


def every_second_image(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


LAYOUTS = [shifted, column_major, channels_first, slice_of_wider, every_second_image]


@pytest.mark.parametrize("depth", [4, 16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_any_layout_gives_the_same_result(dtype, layout, depth):
    inputs = draw(dtype=dtype, depth=depth)
    laid_out = inputs.map(layout)
    assert all(map(torch.equal, laid_out, inputs))
    with poisoned_memory():
        results = operator(laid_out, PLAIN)
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[dtype])


@pytest.mark.parametrize("place", range(4), ids=Inputs._fields)
def test_one_tensor_off_a_16_byte_boundary_gives_the_same_result(place):
    inputs = draw(dtype=torch.float16)
    odd = Inputs(*(shifted(tensor) if index == place else tensor for index, tensor in enumerate(inputs)))
    assert_close(operator(odd, PLAIN), reference(inputs, PLAIN), TOLERANCE[torch.float16])


@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (3,), (1, 2), (0,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_an_expanded_gradient_of_the_output_is_read_as_expanded(dtype, dims):
    inputs = draw(dtype=dtype)
    shape = [1 if dim in dims else size for dim, size in enumerate(inputs.grad_output.shape)]
    expanded = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(DEVICE, dtype)
    inputs = inputs._replace(grad_output=expanded.expand(inputs.grad_output.shape))
    assert 0 in inputs.grad_output.stride()
    assert_close(operator(inputs, PLAIN), reference(inputs, PLAIN), TOLERANCE[dtype])


def test_a_gradient_is_computed_for_the_tensors_that_want_one():
    inputs = draw()
    expected = reference(inputs, PLAIN)
    for index in range(3):
        tensors = [tensor.clone().requires_grad_(position == index) for position, tensor in enumerate(inputs[:3])]
        output = dcnv3(*tensors, groups=2, mask_is_logits=True, backend=BACKEND)
        output.backward(inputs.grad_output)
        error = (tensors[index].grad - expected[index + 1]).abs().max() / expected[index + 1].abs().max()
        assert error < TOLERANCE[torch.float32]
        assert all(tensor.grad is None for position, tensor in enumerate(tensors) if position != index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_mixed_types_are_promoted_to_the_widest(dtype):
    inputs = draw()
    mixed = inputs._replace(input=inputs.input.to(dtype))
    results = operator(mixed, PLAIN)
    assert results[0].dtype == torch.float32 and results[1].dtype == dtype
    expected = reference(mixed, PLAIN)
    assert_close(results, expected, TOLERANCE[dtype])  # the gradient of input is rounded to its type
    assert (results[0] - expected[0]).abs().max() / expected[0].abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "shifted"])
@pytest.mark.parametrize("remove_center", [False, True], ids=["full", "no_centre"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_dcnv4_reads_its_rows_without_their_padding(dtype, remove_center, aligned):
    geometry = PLAIN._replace(mask_is_logits=False, remove_center=remove_center)
    inputs = draw(geometry, dtype=dtype)
    points = geometry.points
    rows = torch.cat([inputs.offset.unflatten(3, (2, 2 * points)), inputs.mask.unflatten(3, (2, points))], dim=-1)
    rows = rows.flatten(3)
    padding = -rows.shape[-1] % 8
    padded = torch.nn.functional.pad(rows, (0, padding), value=float("nan"))
    padded = (padded if aligned else shifted(padded)).requires_grad_()
    x = inputs.input.clone().requires_grad_()
    with poisoned_memory():
        output = ops_dcnv3.dcnv4(x, padded, groups=2, remove_center=remove_center, backend=BACKEND)
        output.backward(inputs.grad_output)
    grad = padded.grad[..., : rows.shape[-1]].unflatten(3, (2, 3 * points))
    grad_offset, grad_mask = (part.flatten(3) for part in grad.split([2 * points, points], dim=-1))
    results = (output.detach(), x.grad, grad_offset, grad_mask)
    assert_close(results, reference(inputs, geometry), TOLERANCE[dtype])
    assert not padded.grad[..., rows.shape[-1] :].any()
