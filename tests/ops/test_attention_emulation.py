"""The CUDA kernels of multi-scale deformable attention, executed on the CPU under emulation."""

import ctypes
import subprocess
from dataclasses import replace

import pytest
import torch
from attention_cases import AttentionCase, reference, reference_gradients
from cuda_emulation_build import COMPILER, DTYPES, build, sparse_zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ALL_TYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])

CASES = {
    "DINO, 32 channels, 4 levels, 4 points": AttentionCase(((6, 9), (3, 5), (2, 3), (1, 2)), depth=32, heads=8),
    "Mask2Former, 3 levels": AttentionCase(((2, 3), (4, 5), (7, 9)), depth=32, heads=3),
    "one level, one point": AttentionCase(((5, 6),), points=1),
    "two points": AttentionCase(points=2, depth=16),
    "three points": AttentionCase(points=3, depth=16),
    "five points": AttentionCase(points=5, depth=4),
    "eight points": AttentionCase(points=8, depth=16),
    "4 channels": AttentionCase(depth=4, heads=3),
    "6 channels": AttentionCase(depth=6),
    "1 channel": AttentionCase(depth=1, heads=5),
    "17 channels": AttentionCase(depth=17, heads=1),
    "24 channels": AttentionCase(depth=24),
    "64 channels": AttentionCase(depth=64, queries=3),
    "more channels than a warp takes at once": AttentionCase(((3, 3),), images=1, depth=280, heads=1),
    "maps of one pixel": AttentionCase(((1, 1), (1, 1))),
    "more queries than a block has threads": AttentionCase(queries=150, depth=8),
}


class Emulator:
    """The kernels as functions of tensors; `arch` chooses between vector (900) and scalar (800) atomics."""

    def __init__(self, arch: int = 900) -> None:
        library = ctypes.CDLL(str(build("emulated_attention.cpp", "-O1", f"-D__CUDA_ARCH__={arch}", shared=True)))
        self.functions = library.emulated_attention_forward, library.emulated_attention_backward
        for function in self.functions:
            function.restype = ctypes.c_char_p

    def forward(self, case: AttentionCase, *inputs: Tensor, seed: int = 0, max_threads: int = 0x7FFFFF00) -> Tensor:
        output = torch.full(case.output_shape, 1e4, dtype=inputs[0].dtype)
        self._call(self.functions[0], case, seed, max_threads, *inputs, output)
        return output

    def backward(self, case: AttentionCase, grad_output: Tensor, *inputs: Tensor, seed=0, max_threads=0x7FFFFF00):
        value, _, locations, weights = inputs
        grad_value = torch.zeros(value.shape, dtype=torch.promote_types(value.dtype, torch.float32))
        rest = torch.full_like(locations, 1e4), torch.full_like(weights, 1e4)
        self._call(self.functions[1], case, seed, max_threads, grad_output, *inputs, grad_value, *rest)
        return grad_value, *rest

    def _call(self, function, case: AttentionCase, seed: int, max_threads: int, *tensors: Tensor) -> None:
        assert all(tensor.is_contiguous() for tensor in tensors)
        sizes = (ctypes.c_int64 * 7)(*case.sizes)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        reason = function(DTYPES[tensors[0].dtype], sizes, ctypes.c_uint(seed), ctypes.c_int64(max_threads), *pointers)
        if reason:
            raise RuntimeError(reason.decode())


@pytest.fixture(scope="module")
def kernels() -> Emulator:
    return Emulator()


def assert_close(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(ours.double(), expected.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-3))


def assert_agrees(kernels: Emulator, case: AttentionCase, dtype: torch.dtype, tolerance: float) -> None:
    *inputs, grad_output = case.tensors(dtype)
    assert_close(kernels.forward(case, *inputs), reference(*inputs), tolerance)
    for ours, expected in zip(
        kernels.backward(case, grad_output, *inputs), reference_gradients(grad_output, *inputs), strict=True
    ):
        assert_close(ours, expected, tolerance)


@ALL_TYPES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_emulated_kernels_agree_with_the_definition(kernels, case, dtype):
    assert_agrees(kernels, case, dtype, TOLERANCE[dtype])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_emulated_kernels_agree_with_the_definition_for_random_sizes(kernels, data):
    side = st.integers(1, 6)
    case = AttentionCase(
        shapes=tuple(data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))),
        images=data.draw(st.integers(1, 3)),
        queries=data.draw(st.integers(1, 9)),
        heads=data.draw(st.integers(1, 4)),
        depth=data.draw(st.integers(1, 20)),
        points=data.draw(st.integers(1, 5)),
    )
    assert_agrees(kernels, case, torch.float64, 1e-11)
    assert_agrees(kernels, case, torch.float32, 1e-4)


@ALL_TYPES
def test_architectures_without_vector_atomics_give_the_same_gradients(dtype):
    assert_agrees(Emulator(arch=800), AttentionCase(depth=16), dtype, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["Mask2Former, 3 levels", "17 channels"])
def test_the_order_of_threads_does_not_matter(kernels, name):
    case = CASES[name]
    *inputs, grad_output = case.tensors(torch.float32)
    output, gradients = kernels.forward(case, *inputs), kernels.backward(case, grad_output, *inputs)
    for seed in range(1, 5):
        assert torch.equal(kernels.forward(case, *inputs, seed=seed), output)
        others = kernels.backward(case, grad_output, *inputs, seed=seed)
        assert_close(others[0], gradients[0], 1e-6)  # atomic additions in another order
        assert torch.equal(others[1], gradients[1])
        assert torch.equal(others[2], gradients[2])


def test_work_cut_into_several_launches_gives_the_same_result(kernels):
    case = AttentionCase(images=3, queries=7, depth=16)
    *inputs, grad_output = case.tensors(torch.float32)
    assert torch.equal(kernels.forward(case, *inputs, max_threads=20), kernels.forward(case, *inputs))
    whole = kernels.backward(case, grad_output, *inputs)
    for ours, expected in zip(kernels.backward(case, grad_output, *inputs, max_threads=20), whole, strict=True):
        assert_close(ours, expected, 1e-6)


def test_points_half_a_pixel_outside_still_count_and_those_at_a_whole_one_do_not(kernels):
    # On a map of 4 pixels, 0 is half a pixel left of the first centre, -0.125 a whole one.
    case = AttentionCase(((4, 4),), images=1, queries=1, heads=1, points=4)
    value, shapes, locations, weights, grad_output = case.tensors(torch.float32)
    weights.fill_(1.0)
    locations[..., 1] = 0.125  # the first row's centre
    locations[..., 0] = torch.tensor([0.0, 1.0, -0.125, 1.125])
    inputs = (value, shapes, locations, weights)
    expected = 0.5 * (value[0, 0] + value[0, 3])
    assert torch.equal(kernels.forward(case, *inputs), expected[None])
    grad_value, grad_locations, grad_weights = kernels.backward(case, grad_output, *inputs)
    assert torch.equal(grad_value[0, [0, 3], 0], 0.5 * grad_output[0, 0].expand(2, -1))
    assert not grad_locations[..., 2:, :].any() and not grad_weights[..., 2:].any()
    assert grad_locations[..., :2, 0].all() and grad_weights[..., :2].all()


@pytest.mark.parametrize("place", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("points", [3, 4])
def test_points_at_impossible_places_contribute_nothing(kernels, place, points):
    case = AttentionCase(points=points)
    value, shapes, locations, weights, grad_output = case.tensors(torch.float32)
    for axis in (0, 1):
        far = locations.clamp(0.2, 0.8)
        far[..., axis] = place
        inputs = (value, shapes, far, weights)
        assert torch.equal(kernels.forward(case, *inputs), torch.zeros(case.output_shape))
        for gradient in kernels.backward(case, grad_output, *inputs):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_infinite_values_do_not_reach_points_that_do_not_touch_them(kernels):
    case = AttentionCase(((1, 4), (1, 1)), images=1, queries=1, heads=1, points=4)
    value, shapes, locations, weights, _ = case.tensors(torch.float32)
    value[:, 1:] = torch.inf
    locations[..., 1] = 0.5
    locations[:, :, :, 0, :, 0] = 0.0  # between the first pixel and its left neighbour, which does not exist
    locations[:, :, :, 1] = -7.0
    expected = 0.5 * weights[..., 0, :].sum() * value[0, 0]
    assert_close(kernels.forward(case, value, shapes, locations, weights), expected[None], 1e-6)


@pytest.mark.parametrize("change", [(0, 1), (1, 7), (1, -1), (0, 2**31 - 1), (0, -5)])
def test_shapes_that_do_not_make_up_the_keys_give_nan_and_touch_nothing_else(kernels, change):
    case = AttentionCase(points=4)
    value, shapes, locations, weights, grad_output = case.tensors(torch.float32)
    wrong = shapes.clone()
    wrong[change[0], 0] += change[1]
    inputs = (value, wrong, locations, weights)
    assert kernels.forward(case, *inputs).isnan().all()
    grad_value, grad_locations, grad_weights = kernels.backward(case, grad_output, *inputs)
    assert grad_locations.isnan().all() and grad_weights.isnan().all()
    assert grad_value.isfinite().all()


@ALL_TYPES
def test_no_queries_and_no_images_launch_nothing(kernels, dtype):
    for case in (AttentionCase(queries=0), AttentionCase(images=0)):
        *inputs, grad_output = case.tensors(dtype)
        assert kernels.forward(case, *inputs).shape == case.output_shape
        assert not kernels.backward(case, grad_output, *inputs)[0].any()


def test_a_level_without_pixels_adds_nothing(kernels):
    assert_agrees(kernels, AttentionCase(((2, 2), (0, 3), (1, 2))), torch.float32, 1e-5)


@pytest.mark.parametrize("case", [AttentionCase(points=0), AttentionCase(shapes=())], ids=["points", "levels"])
def test_without_points_or_levels_the_output_is_zero(kernels, case):
    *inputs, grad_output = case.tensors(torch.float32)
    assert torch.equal(kernels.forward(case, *inputs), torch.zeros(case.output_shape))
    assert not kernels.backward(case, grad_output, *inputs)[0].any()


def test_addresses_beyond_32_bits_are_reached(kernels):
    # 2.2e9 elements of address space, of which a few pages are touched.
    case = AttentionCase(((1, 1024), (8, 4096)), images=2, queries=1, heads=1, depth=32768, points=4)
    value, grad_value = (sparse_zeros(case.images, case.keys, 1, case.depth) for _ in range(2))
    _, shapes, locations, weights, _ = replace(case, depth=0).tensors(torch.float32)
    grad_output = torch.randn(case.output_shape)
    locations.fill_(-1.0)
    locations[:, :, :, 1, 0] = torch.tensor([1 - 0.5 / 4096, 1 - 0.5 / 8])  # the last pixel of the last level
    value[:, -1] = grad_output
    weight = weights[:, :, :, 1, 0]
    assert torch.equal(kernels.forward(case, value, shapes, locations, weights), weight * grad_output)
    rest = torch.empty_like(locations), torch.empty_like(weights)
    tensors = (grad_output, value, shapes, locations, weights, grad_value, *rest)
    kernels._call(kernels.functions[1], case, 0, 0x7FFFFF00, *tensors)
    assert torch.equal(grad_value[:, -1], weight * grad_output)
    assert_close(rest[1][:, :, :, 1, 0], grad_output.square().sum(-1, keepdim=True), 1e-5)


def test_sizes_beyond_31_bit_indices_are_refused_in_words(kernels):
    empty = [torch.zeros(0)] * 4
    for case, message in (
        (AttentionCase(((2**15, 2**14),)), "less than 2\\^29 keys; split the maps"),
        (AttentionCase(images=2**16, queries=2**15), "batch \\* queries must be below 2\\^31"),
        (AttentionCase(heads=2**16, depth=2**12), "heads \\* depth must be below 2\\^28"),
    ):
        with pytest.raises(RuntimeError, match=message):
            kernels._call(kernels.functions[0], case, 0, 1000, empty[0], *empty)


@pytest.mark.slow
def test_no_kernel_touches_memory_outside_its_tensors():
    flags = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    finished = subprocess.run([build("emulated_attention_memory_check.cpp", *flags)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "288 runs\n"
