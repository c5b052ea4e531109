"""The CUDA kernels, executed on the CPU under emulation: one fiber per CUDA thread, in shuffled order."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulation_build import COMPILER, Emulator, build, sparse_zeros
from dcnv3_cases import Case, reference, reference_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import operator_case, relative_error

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulated kernels with")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

CASES = {
    "stage of T, 16 channels per group": Case(batch=2, height=7, width=9, channels=16),
    "32 channels per group": Case(height=6, width=5, channels=32, offset_scale=2.0),
    "logits": Case(batch=2, channels=16, logits=True),
    "without centre": Case(channels=16, remove_center=True),
    "without centre, logits": Case(channels=8, remove_center=True, logits=True),
    "4 channels per group": Case(channels=4, groups=3),
    "6 channels per group": Case(channels=6, stride=(2, 1)),
    "1 channel per group": Case(channels=1, groups=5),
    "17 channels per group, logits": Case(channels=17, groups=1, logits=True),
    "24 channels per group": Case(channels=24, groups=1, remove_center=True),
    "more channels than a warp takes at once": Case(height=3, width=3, channels=280, groups=1),
    "5x5 window, dilated, logits": Case(
        height=10, width=9, kernel=(5, 5), padding=(2, 2), dilation=(2, 1), logits=True
    ),
    "unequal window": Case(kernel=(1, 4), stride=(2, 3), padding=(0, 2), dilation=(1, 2), offset_scale=0.5),
    "unequal 3x3": Case(stride=(2, 1), padding=(0, 3), dilation=(1, 2), offset_scale=1.5, channels=16),
    "one pixel": Case(height=1, width=1, channels=16),
}


@pytest.fixture(scope="module")
def kernels():
    return Emulator()


def assert_close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(ours.double(), expected.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_emulated_kernels_agree_with_the_definition(kernels, case, dtype):
    *tensors, grad_output = case.tensors(dtype)
    assert_close(kernels.forward(case, *tensors), reference(case, *tensors), TOLERANCE[dtype])
    ours = kernels.backward(case, grad_output, *tensors)
    for gradient, expected in zip(ours, reference_gradients(case, grad_output, *tensors)):
        assert_close(gradient, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("index", range(6))
def test_emulated_kernels_give_the_original_projects_results(kernels, index):
    golden = operator_case(index)
    g = golden.geometry
    batch, height, width, channels = golden.inputs[0].shape
    window = [
        (g.kernel_h, g.kernel_w),
        (g.stride_h, g.stride_w),
        (g.padding_h, g.padding_w),
        (g.dilation_h, g.dilation_w),
    ]
    case = Case(batch, height, width, g.groups, channels // g.groups, *window, g.offset_scale, g.remove_center)
    inputs = [tensor.float().contiguous() for tensor in golden.inputs]
    ours = (kernels.forward(case, *inputs), *kernels.backward(case, golden.grad_output.float(), *inputs))
    for actual, expected in zip(ours, (golden.output, *golden.grads)):
        assert relative_error(actual, expected) < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_emulated_kernels_agree_with_the_definition_for_any_shape(kernels, data):
    def pair(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    case = Case(
        batch=data.draw(st.integers(1, 2)),
        height=data.draw(st.integers(5, 8)),
        width=data.draw(st.integers(5, 8)),
        groups=data.draw(st.integers(1, 3)),
        channels=data.draw(st.integers(1, 20)),
        kernel=pair(1, 3),
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=pair(1, 2),
        offset_scale=data.draw(st.sampled_from([0.5, 1.0, 1.7])),
        logits=data.draw(st.booleans()),
    )
    *tensors, grad_output = case.tensors(torch.float64)
    assert_close(kernels.forward(case, *tensors), reference(case, *tensors), 1e-11)
    ours = kernels.backward(case, grad_output, *tensors)
    for gradient, expected in zip(ours, reference_gradients(case, grad_output, *tensors)):
        assert_close(gradient, expected, 1e-11)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
def test_architectures_without_vector_atomics_give_the_same_gradients(dtype):
    case = Case(channels=16, logits=True)
    *tensors, grad_output = case.tensors(dtype)
    ours = Emulator(arch=800).backward(case, grad_output, *tensors)
    for gradient, expected in zip(ours, reference_gradients(case, grad_output, *tensors)):
        assert_close(gradient, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["stage of T, 16 channels per group", "17 channels per group, logits"])
def test_the_order_of_threads_does_not_matter(kernels, name):
    case = CASES[name]
    *tensors, grad_output = case.tensors(torch.float32)
    output = kernels.forward(case, *tensors)
    gradients = kernels.backward(case, grad_output, *tensors)
    for seed in range(1, 6):
        assert torch.equal(kernels.forward(case, *tensors, seed=seed), output)
        others = kernels.backward(case, grad_output, *tensors, seed=seed)
        assert_close(others[0], gradients[0], 1e-6)  # atomic additions in another order
        assert torch.equal(others[1], gradients[1])
        assert torch.equal(others[2], gradients[2])


def test_work_cut_into_several_launches_gives_the_same_result(kernels):
    case = Case(batch=3, channels=16)
    *tensors, grad_output = case.tensors(torch.float32)
    assert torch.equal(kernels.forward(case, *tensors, max_threads=200), kernels.forward(case, *tensors))
    pairs = zip(
        kernels.backward(case, grad_output, *tensors, max_threads=200), kernels.backward(case, grad_output, *tensors)
    )
    for cut, whole in pairs:
        assert_close(cut, whole, 1e-6)


@pytest.mark.parametrize("padding", [1, 2])
def test_points_exactly_on_the_border_do_not_count(kernels, padding):
    # Zero offsets, as a new layer has them, put points of the outer ring at exactly -1 and at exactly the size.
    case = Case(channels=16, padding=(padding, padding))
    input, offset, mask, grad_output = case.tensors(torch.float32)
    tensors = (input, torch.zeros_like(offset), mask)
    assert_close(kernels.forward(case, *tensors), reference(case, *tensors), 1e-6)
    ours = kernels.backward(case, grad_output, *tensors)
    for gradient, expected in zip(ours, reference_gradients(case, grad_output, *tensors)):
        assert_close(gradient, expected, 1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_points_at_impossible_places_contribute_nothing(kernels, value):
    case = Case(channels=16)
    input, offset, mask, grad_output = case.tensors(torch.float32)
    far = torch.full_like(offset, value)
    assert torch.equal(kernels.forward(case, input, far, mask), torch.zeros(case.output_shape))
    for gradient in kernels.backward(case, grad_output, input, far, mask):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_infinite_values_do_not_reach_points_that_do_not_touch_them(kernels):
    case = Case(groups=1, channels=16, kernel=(1, 1), padding=(0, 0))
    input, offset, mask, _ = case.tensors(torch.float32)
    offset.zero_()
    offset[..., 0] = -0.5  # between a column and its left neighbour; column 0 has none
    input[:, :, 1:] = torch.inf
    output = kernels.forward(case, input, offset, mask)
    assert_close(output[:, :, 0], 0.5 * mask[:, :, 0] * input[:, :, 0], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_passes_unchanged(kernels, dtype):
    case = Case(8192, 1, 1, groups=1, channels=8, kernel=(1, 1), padding=(0, 0))
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(8192, 1, 1, 8)
    offset, mask = torch.zeros(8192, 1, 1, 2, dtype=dtype), torch.ones(8192, 1, 1, 1, dtype=dtype)
    output = kernels.forward(case, every, offset, mask)
    torch.testing.assert_close(output, every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_rounded_to_nearest_even(kernels, dtype):
    bits = torch.randint(-(2**31), 2**31 - 1, (10001,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    small, large = torch.linspace(-1, 1, 4097)[:-1] * 2**-13, torch.tensor([65519.0, 65520.0])
    wide = torch.cat([bits.view(torch.float32), small, large])
    result = torch.empty(wide.shape, dtype=dtype)
    kernels.narrow(wide, result)
    torch.testing.assert_close(result, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_an_empty_batch_launches_nothing(kernels):
    case = Case(batch=0)
    *tensors, grad_output = case.tensors(torch.float32)
    assert kernels.forward(case, *tensors).shape == case.output_shape
    assert kernels.backward(case, grad_output, *tensors)[0].shape == tensors[0].shape


def test_images_beyond_31_bit_indices_are_refused_in_words(kernels):
    case = Case(height=60000, width=60000, stride=(60000, 60000), channels=1)
    empty = torch.zeros(0)
    with pytest.raises(RuntimeError, match="below 2\\^31; split the batch or the image"):
        kernels._call(kernels.library.emulated_forward, case, 0, 1000, empty, empty, empty, empty)


def test_addresses_beyond_32_bits_are_reached(kernels):
    # 2.3e9 elements of address space, of which a few pages are touched.
    case = Case(
        batch=2, height=9, width=4000, groups=1, channels=32768, stride=(8, 3999), padding=(0, 0), kernel=(1, 1)
    )
    sizes = (case.batch, case.height, case.width, case.channels)
    input, grad_input = sparse_zeros(*sizes), sparse_zeros(*sizes)
    offset, mask = torch.zeros(2, 2, 2, 2), torch.ones(2, 2, 2, 1)
    ends = (..., slice(None, None, 8), slice(None, None, 3999), slice(None))
    grad_output = torch.randn(case.output_shape)
    input[ends] = grad_output
    assert torch.equal(kernels.forward(case, input, offset, mask), grad_output)
    rest = (torch.empty_like(offset), torch.empty_like(mask))
    tensors = (grad_output, input, offset, mask, grad_input, *rest)
    kernels._call(kernels.library.emulated_backward, case, 0, 0x7FFFFF00, *tensors)
    assert torch.equal(grad_input[ends], grad_output)
    assert_close(rest[1].flatten(), grad_output.square().sum(-1).flatten(), 1e-5)


@pytest.mark.slow
def test_no_kernel_touches_memory_outside_its_tensors():
    program = build("emulated_memory_check.cpp", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "224 runs\n"


def run_check(name: str, seed: int) -> subprocess.CompletedProcess:
    return subprocess.run([build("emulator_checks.cpp", "-O1"), name, str(seed)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "result"), [("block sum", "2016 0"), ("ballot", "0 1227133513"), ("half warp", "1152 0")]
)
def test_the_emulator_runs_barriers_shared_memory_and_collectives(name, result):
    for seed in range(4):
        assert run_check(name, seed).stdout.strip() == result


def test_the_emulator_shuffles_threads_and_blocks_by_seed():
    orders = [[int(word) for word in run_check("order", seed).stdout.split()[:-2]] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert [sorted(order) for order in orders] == [list(range(128))] * 3


def test_the_emulator_shows_a_missing_barrier():
    assert any("nan" in run_check("missing barrier", seed).stdout for seed in range(4))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("early exit", "left the kernel|others do not reach"),
        ("different barriers", "others do not reach"),
        ("missing lane", "others do not reach"),
        ("misaligned", "misaligned address"),
    ],
)
def test_the_emulator_stops_at_what_hardware_forbids(name, message):
    finished = run_check(name, seed=0)
    assert finished.returncode != 0
    assert any(part in finished.stderr for part in message.split("|"))


def test_the_binding_prepares_tensors_and_converts_gradients():
    torch_folder = Path(torch.__file__).parent
    flags = ["-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_folder / "include")]
    library = build("emulated_binding.cpp", *flags, f"-L{torch_folder / 'lib'}", shared=True, libraries=["-ltorch_cpu"])
    script = Path(__file__).with_name("emulated_binding_run.py")
    finished = subprocess.run([sys.executable, script, library], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "opcheck and gradcheck pass"
