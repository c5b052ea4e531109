"""Runs the operator over the CUDA binding and the emulated kernels, which here stand in for the CPU kernels.

The argument is the library made from emulated_binding.cpp. Prints a line per check that passed.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
sys.path.append(str(Path(__file__).resolve().parent))

import torch  # noqa: E402
from dcnv3_cases import Case, reference, reference_gradients  # noqa: E402

import ops_dcnv3  # noqa: E402, F401

torch.ops.load_library(sys.argv[1])
forward, backward = torch.ops.ops_dcnv3.forward, torch.ops.ops_dcnv3.backward


def arguments(case: Case) -> list:
    pairs = (case.kernel, case.stride, case.padding, case.dilation)
    sizes = [size for pair in pairs for size in pair]
    return [*sizes, case.groups, case.offset_scale, case.remove_center, case.logits]


def check(case: Case, grad_output: torch.Tensor, *tensors: torch.Tensor) -> None:
    output = forward(*tensors, *arguments(case))
    gradients = backward(grad_output, *tensors, *arguments(case))
    expected = (reference(case, *tensors), *reference_gradients(case, grad_output, *tensors))
    tolerance = 8 * torch.finfo(output.dtype).eps
    for ours, theirs in zip((output, *gradients), expected):
        assert ours.dtype == output.dtype and ours.is_contiguous()
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())


case = Case(batch=2, channels=16, logits=True)
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    *tensors, grad_output = case.tensors(dtype)
    check(case, grad_output, *tensors)
    print(dtype, "agrees")

*tensors, grad_output = case.tensors(torch.float32)
strided = [x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3) for x in (grad_output, *tensors)]
assert not any(x.is_contiguous() for x in strided)
check(case, *strided)
print("strided tensors agree")

shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in (grad_output, *tensors)]
assert any(x.data_ptr() % 16 for x in shifted)
check(case, *shifted)
print("tensors off the 16-byte boundaries agree")

empty = Case(batch=0, channels=16)
*tensors, grad_output = empty.tensors(torch.float16)
assert forward(*tensors, *arguments(empty)).shape == empty.output_shape
shapes = [x.shape for x in backward(grad_output, *tensors, *arguments(empty))]
assert shapes == [x.shape for x in tensors]
print("an empty batch gives empty tensors")

small = Case(height=4, width=3, channels=3)
*tensors, _ = small.tensors(torch.float64)
tensors = [x.requires_grad_() for x in tensors]
torch.library.opcheck(forward, (*tensors, *arguments(small)))
assert torch.autograd.gradcheck(lambda *x: forward(*x, *arguments(small)), tensors, atol=1e-6)
print("opcheck and gradcheck pass")
