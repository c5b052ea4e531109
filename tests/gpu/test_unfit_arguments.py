"""The raw operators check what they are given: `dcnv3` is not the only way to reach them."""

import pytest
import torch
from gpu_cases import BACKEND, DEVICE, PLAIN, draw

from ops_dcnv3 import backends


@pytest.fixture(autouse=True)
def _kernels():
    """The raw operators need the library, which is loaded at first use."""
    backends.select(BACKEND, DEVICE)


def wrong_arguments():
    right = {"input": (2, 9, 7, 32), "offset": (2, 9, 7, 36), "mask": (2, 9, 7, 18), "grad_output": (2, 9, 7, 32)}
    for name, shape in right.items():
        yield pytest.param(name, {"dtype": torch.float16}, id=f"{name} of another type")
        yield pytest.param(name, {"device": "cpu"}, id=f"{name} on another device")
        yield pytest.param(name, {"shape": (2, 9, 7, shape[3] - 1)}, id=f"{name} with fewer channels")
        yield pytest.param(name, {"shape": (2, 9, 5, shape[3])}, id=f"{name} with fewer columns")
        yield pytest.param(name, {"shape": (1, *shape[1:])}, id=f"{name} with fewer images")
        yield pytest.param(name, {"shape": shape[1:]}, id=f"{name} without images")


@pytest.mark.parametrize(("name", "change"), wrong_arguments())
def test_raw_operators_refuse_tensors_that_do_not_fit(name, change):
    tensors = draw()._asdict()
    shape = change.get("shape", tensors[name].shape)
    tensors[name] = torch.zeros(shape, dtype=change.get("dtype"), device=change.get("device", DEVICE))
    three = tensors["input"], tensors["offset"], tensors["mask"]
    if name != "grad_output":
        with pytest.raises(RuntimeError):
            torch.ops.ops_dcnv3.forward(*three, *PLAIN)
    with pytest.raises(RuntimeError):
        torch.ops.ops_dcnv3.backward(tensors["grad_output"], *three, *PLAIN)
    torch.cuda.synchronize()  # nothing was launched that could still fail


@pytest.mark.parametrize(
    "change",
    [{"groups": 0}, {"groups": 5}, {"kernel_h": 0}, {"stride_w": 0}, {"dilation_h": 0}, {"padding_h": -1}],
    ids=lambda change: next(iter(change)),
)
def test_raw_operators_refuse_geometries_that_do_not_fit(change):
    inputs = draw()
    with pytest.raises(RuntimeError):
        torch.ops.ops_dcnv3.forward(*inputs[:3], *PLAIN._replace(**change))
    with pytest.raises(RuntimeError):
        torch.ops.ops_dcnv3.backward(inputs.grad_output, *inputs[:3], *PLAIN._replace(**change))
    torch.cuda.synchronize()
