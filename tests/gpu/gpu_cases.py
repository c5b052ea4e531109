"""What the GPU tests share: inputs, the float64 reference, the call under test and how results are compared."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ops_dcnv3 import dcnv3
from ops_dcnv3.reference import Geometry, gather_core, sampling_locations

DEVICE = torch.device("cuda", 0)
BACKEND = "cuda"
# Relative to the largest value. The emulated kernels (tests/ops/test_cuda_emulation.py) are off by at most 3e-15, 4e-6,
# 5e-4 and 4e-3. On a GPU sums come in any order, and half types may be blended before they are widened.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = tuple(TOLERANCE)
HALF = (torch.float16, torch.bfloat16)
PLAIN = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 2, 1.0, False, True)
NAMES = ("output", "gradient of input", "gradient of offset", "gradient of mask")


def dtype_id(value: object) -> str | None:
    """`float16` for `torch.float16`, for the names of parametrised tests."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


class Inputs(NamedTuple):
    """The operator's tensors, and the gradient of its output."""

    input: Tensor
    offset: Tensor
    mask: Tensor
    grad_output: Tensor

    def map(self, function) -> "Inputs":
        return Inputs(*map(function, self))


def draw(
    geometry: Geometry = PLAIN,
    size: tuple[int, int, int] = (2, 9, 7),
    depth: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 2.0,
) -> Inputs:
    """Normal numbers, the same on every machine. Offsets are `spread` pixels or so, and reach beyond the border.

    With a spread of more than 5 some would be so large that bfloat16 has no numbers between whole pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    out = (size[0], *geometry.output_size(*size[1:]))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    input = randn(*size, geometry.groups * depth)
    offset = (spread * randn(*out, geometry.groups * geometry.points * 2)).to(dtype)
    offset = off_whole_pixels(offset, geometry)
    mask = randn(*out, geometry.groups * geometry.points)
    grad_output = randn(*out, geometry.groups * depth)
    return Inputs(input, offset, mask, grad_output).map(lambda tensor: tensor.to(DEVICE, dtype))


def off_whole_pixels(offset: Tensor, geometry: Geometry) -> Tensor:
    """Move points off whole coordinates, where the offset's gradient jumps and rounding chooses the side."""
    while True:
        x, y = sampling_locations(offset.double(), geometry)
        points = torch.stack([x, y], dim=-1).view(offset.shape)
        near = (points - points.round()).abs() < 1e-3
        if not near.any():
            return offset
        offset = torch.where(near, offset + 0.125, offset)


def operator(inputs: Inputs, geometry: Geometry, backend: str | None = None) -> tuple[Tensor, ...]:
    """Output and the gradients of input, offset and mask, by the operator. The tensors' strides are kept."""
    g = geometry
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    output = dcnv3(
        *leaves,
        kernel_size=(g.kernel_h, g.kernel_w),
        stride=(g.stride_h, g.stride_w),
        padding=(g.padding_h, g.padding_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
        offset_scale=g.offset_scale,
        remove_center=g.remove_center,
        mask_is_logits=g.mask_is_logits,
        backend=backend or BACKEND,
    )
    return output.detach(), *torch.autograd.grad(output, leaves, inputs.grad_output)


def reference(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, ...]:
    """The same by `gather_core`, in float64."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs[:3]]
    output = gather_core(*leaves, geometry)
    return output.detach(), *torch.autograd.grad(output, leaves, inputs.grad_output.double())


def assert_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    """Compare outputs and gradients; NaN in `actual` is a difference."""
    for name, got, wanted in zip(NAMES, actual, expected, strict=True):
        assert got.shape == wanted.shape, name
        scale = wanted.abs().max().clamp(min=1e-3)
        error = ((got.double() - wanted.double()).abs().max() / scale).item()
        assert error < tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.1e}"


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Tensors that PyTorch allocates start as NaN, so that elements which a kernel does not write show."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # brings torch.utils.deterministic's filling along
    try:
        assert torch.empty(5, device=DEVICE).isnan().all()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(False)
