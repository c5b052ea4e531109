"""Triton beside CUDA, plain PyTorch on the GPU, and tensors on a device that is not the current one."""

import pytest
import torch
from gpu_cases import DTYPES, PLAIN, TOLERANCE, assert_close, draw, dtype_id, operator, reference

from ops_dcnv3 import backends
from ops_dcnv3.reference import Geometry

needs_triton = pytest.mark.usefixtures("triton")
GEOMETRIES = {
    "logits": (PLAIN, 16),
    "weights, odd channels": (PLAIN._replace(mask_is_logits=False), 3),
    "strided, unequal": (Geometry(2, 3, 1, 2, 0, 1, 2, 1, 2, 0.7, False, True), 8),
}


@pytest.fixture
def triton():
    if reason := backends.status()["triton"]:
        pytest.skip(reason)


@needs_triton
@pytest.mark.parametrize(("geometry", "depth"), GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_triton_equals_cuda_in_both_passes(dtype, geometry, depth):
    inputs = draw(geometry, depth=depth, dtype=dtype)
    # Each is off by one rounding or so, in either direction.
    assert_close(operator(inputs, geometry, "triton"), operator(inputs, geometry, "cuda"), 2 * TOLERANCE[dtype])


@needs_triton
@pytest.mark.parametrize("remove_center", [False, True], ids=["full", "no_centre"])
def test_triton_equals_the_reference(remove_center):
    geometry = PLAIN._replace(remove_center=remove_center)
    inputs = draw(geometry)
    assert_close(operator(inputs, geometry, "triton"), reference(inputs, geometry), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_plain_pytorch_on_the_gpu_equals_the_reference(dtype):
    inputs = draw(dtype=dtype)
    assert_close(operator(inputs, PLAIN, "torch"), reference(inputs, PLAIN), TOLERANCE[dtype])


@needs_triton
def test_triton_runs_on_the_current_stream():
    inputs = draw()
    operator(inputs, PLAIN, "triton")  # compiles
    late = inputs.map(torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for tensor, value in zip(late, inputs, strict=True):
            tensor.copy_(value)
        results = operator(late, PLAIN, "triton")
    stream.synchronize()
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[torch.float32])


@needs_triton
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_tensors_on_another_than_the_current_device_stay_there(backend):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    inputs = draw().map(lambda tensor: tensor.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    results = operator(inputs, PLAIN, backend)
    assert torch.cuda.current_device() == 0
    assert all(tensor.device == torch.device("cuda", 1) for tensor in results)
    assert_close(results, reference(inputs, PLAIN), TOLERANCE[torch.float32])
