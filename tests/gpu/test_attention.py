"""Multi-scale deformable attention on a GPU against grid_sample in float64."""

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import DEVICE, DTYPES, HALF, TOLERANCE, dtype_id

from internimage.ms_deform_attn import ms_deform_attn

LEVELS = [(12, 17), (6, 9), (3, 5), (2, 3)]
NAMES = ("output", "gradient of value", "gradient of locations", "gradient of weights")


def by_grid_sample(value, shapes, locations, weights):
    """The definition (Zhu et al., "Deformable DETR", 2021): one grid_sample per level."""
    images, _, heads, depth = value.shape
    output = 0
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(images * heads, depth, *shapes[level])
        points = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, points, align_corners=False)
        output = output + (sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return output.view(images, heads * depth, -1).transpose(1, 2)


def draw(shapes=LEVELS, images=2, queries=37, heads=4, depth=8, points=4, dtype=torch.float32, seed=1):
    """Value, locations from 0.2 outside the map to 0.2 outside, weights, and the output's gradient."""
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    keys = sum(height * width for height, width in shapes)
    value = 2 * rand(images, keys, heads, depth) - 1
    locations = 1.4 * rand(images, queries, heads, len(shapes), points, 2) - 0.2
    weights = rand(images, queries, heads, len(shapes), points)
    grad_output = 2 * rand(images, queries, heads * depth) - 1
    tensors = [tensor.to(dtype) for tensor in (value, locations, weights, grad_output)]
    tensors[1] = off_whole_pixels(tensors[1], shapes)
    return [tensor.to(DEVICE) for tensor in tensors]


def off_whole_pixels(locations, shapes):
    """Move points off whole pixels, where the gradient of the location jumps and rounding chooses the side."""
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None].double()
    step = 2.0**-7  # of the map; a tenth of a pixel
    while True:
        pixels = locations.double() * sizes - 0.5
        near = (pixels - pixels.round()).abs() < 1e-3
        if not near.any():
            return locations
        locations = torch.where(near, locations + step, locations)


def on_gpu(shapes):
    return torch.tensor(shapes, device=DEVICE)


def run(function, shapes, value, locations, weights, grad_output):
    leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(output.dtype))


def assert_close(actual, expected, tolerance):
    for name, got, wanted in zip(NAMES, actual, expected, strict=True):
        assert got.shape == wanted.shape, name
        error = ((got.double() - wanted).abs().max() / wanted.abs().max()).item()
        assert error < tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.1e}"


def check(tensors, shapes, dtype):
    results = run(ms_deform_attn, on_gpu(shapes), *tensors)
    expected = run(by_grid_sample, shapes, *(tensor.double() for tensor in tensors))
    assert all(result.dtype == tensor.dtype for result, tensor in zip(results[1:], tensors))
    assert results[0].dtype == dtype
    assert_close(results, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("depth", [4, 8, 16, 32, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_output_and_gradients_equal_grid_samples(dtype, depth):
    check(draw(depth=depth, dtype=dtype), LEVELS, dtype)


@pytest.mark.parametrize(
    ("shapes", "points"), [([(7, 5)], 4), ([(9, 8), (5, 4), (3, 2)], 3), ([(1, 1), (2, 40)], 1), ([(4, 4)] * 5, 8)]
)
def test_any_number_of_levels_and_points_equals_grid_samples(shapes, points):
    check(draw(shapes, points=points), shapes, torch.float32)


@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_half_values_with_float32_locations_are_computed_as_under_autocast(dtype):
    value, locations, weights, grad_output = draw()
    check((value.to(dtype), locations, weights, grad_output), LEVELS, dtype)


def test_gradients_equal_finite_differences():
    shapes = [(4, 3), (2, 2)]
    value, locations, weights, _ = draw(shapes, 1, 5, 2, 3, 2, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    call = lambda v, l, w: ms_deform_attn(v, on_gpu(shapes), l, w)  # noqa: E731, E741
    assert torch.autograd.gradcheck(call, leaves, atol=1e-6, nondet_tol=1e-10)


def test_level_sizes_may_be_python_integers():
    value, locations, weights, _ = draw()
    results = [ms_deform_attn(value, shapes, locations, weights) for shapes in (LEVELS, on_gpu(LEVELS))]
    assert torch.equal(*results)


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 1e30], ids=str)
def test_a_point_nowhere_counts_as_one_of_weight_zero(place):
    value, locations, weights, grad_output = draw()
    lost, zero = locations.clone(), weights.clone()
    lost[0, 3, 1, 2, 0, 1] = place
    zero[0, 3, 1, 2, 0] = 0
    results = run(ms_deform_attn, on_gpu(LEVELS), value, lost, weights, grad_output)
    expected = run(by_grid_sample, LEVELS, *(tensor.double() for tensor in (value, locations, zero, grad_output)))
    expected[3][0, 3, 1, 2, 0] = 0  # it gets no gradient for its weight either
    assert_close(results, expected, TOLERANCE[torch.float32])


def test_deterministic_mode_refuses_the_backward_pass_by_name():
    *leaves, grad_output = draw()
    for leaf in leaves:
        leaf.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        output = ms_deform_attn(leaves[0], on_gpu(LEVELS), *leaves[1:])
        with pytest.raises(RuntimeError, match=r"ms_deform_attn[\s\S]*deterministic"):
            output.backward(grad_output)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dim", range(5))
def test_weights_that_do_not_fit_the_locations_are_refused(dim):
    value, locations, weights, _ = draw()
    with pytest.raises(RuntimeError):
        ms_deform_attn(value, on_gpu(LEVELS), locations, weights.narrow(dim, 0, weights.shape[dim] - 1))
    torch.cuda.synchronize()  # nothing was launched that could still fail


def test_neither_queries_nor_images_are_needed():
    value, locations, weights, grad_output = draw(queries=0)
    assert ms_deform_attn(value, on_gpu(LEVELS), locations, weights).shape == (2, 0, 32)
    value, locations, weights, grad_output = draw(images=0)
    results = run(ms_deform_attn, on_gpu(LEVELS), value, locations, weights, grad_output)
    assert [result.shape[0] for result in results] == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_id)
def test_neither_pass_waits_for_the_device(dtype):
    tensors, shapes = draw(dtype=dtype), on_gpu(LEVELS)
    run(ms_deform_attn, shapes, *tensors)  # loads and builds what is missing
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(ms_deform_attn, shapes, *tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=dtype_id)
def test_captured_passes_follow_changed_inputs(dtype):
    shapes = on_gpu(LEVELS)
    *leaves, grad_output = [tensor.clone() for tensor in draw(dtype=dtype)]
    for leaf in leaves:
        leaf.requires_grad_()

    def step():
        output = ms_deform_attn(leaves[0], shapes, *leaves[1:])
        return output.detach(), *torch.autograd.grad(output, leaves, grad_output)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (2, 3):
        fresh = draw(dtype=dtype, seed=seed)
        with torch.no_grad():
            for tensor, value in zip((*leaves, grad_output), fresh, strict=True):
                tensor.copy_(value)
        graph.replay()
        assert_close(results, run(by_grid_sample, LEVELS, *(tensor.double() for tensor in fresh)), TOLERANCE[dtype])
