"""The operators as functions: check the arguments and call a backend.

`dcnv3` is InternImage's operator (Wang et al., CVPR 2023, section 3.1), `dcnv4` that of Efficient Deformable ConvNets
(Xiong et al., CVPR 2024; https://github.com/OpenGVLab/DCNv4) with the same kernels: the same sampling, unbounded point
weights, and one tensor for offsets and weights.
"""

import torch
from torch import Tensor

from . import backends
from .reference import Geometry, gather_core, grid_sample_core
from .schema import is_transformed, promote

__all__ = ["dcnv3", "dcnv4", "dcnv4_row_length"]

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str = "auto",
    mask_is_logits: bool = False,
) -> Tensor:
    """Deformable convolution v3: per group, a mask-weighted sum of bilinear samples at deformed kernel points.

    With `P = Kh * Kw - remove_center` points, `G` groups of `D` channels, and per-axis output size
    `(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1`. Point `k` runs over the kernel column by column.
    Samples outside the input, or at coordinates that are not finite, are zero. Coordinates and sums are float32 for
    half dtypes, else they have the input's dtype.

    Args:
        input: `(N, H, W, G*D)`; float64, float32, bfloat16 or float16; need not be contiguous.
        offset: `(N, Ho, Wo, G*P*2)`, `(x, y)` pairs in pixels, multiplied by `offset_scale`.
        mask: `(N, Ho, Wo, G*P)`, the weights of the points.
        kernel_size, stride, padding, dilation: an int, or `(height, width)`.
        groups: `G`; must divide the channels.
        offset_scale: factor on the kernel's extent and on the offsets.
        remove_center: leave out the kernel's central point; needs odd kernel sizes.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch` (see `python -m ops_dcnv3`). In `torch.onnx.export`,
            torch.func transforms and forward-mode differentiation, `auto` is `torch`, which uses standard operators.
        mask_is_logits: apply a softmax over the `P` points of each group to `mask` first.

    Returns:
        `(N, Ho, Wo, G*D)`. Tensors of different dtypes are promoted to the widest.

    Raises:
        ValueError: arguments or shapes that do not fit together.
        TypeError: a tensor that is not floating point.
        ops_dcnv3.BackendError: the requested backend is not available.
        RuntimeError: a compiled backend was requested in a transform of torch.func.
    """
    geometry = _geometry(kernel_size, stride, padding, dilation, groups, offset_scale, remove_center, mask_is_logits)
    _check(input, offset, mask, geometry)
    if not input.dtype == offset.dtype == mask.dtype:
        input, offset, mask = promote(input, offset, mask)
    compiling = torch.compiler.is_compiling()
    transformed = not compiling and is_transformed(input, offset, mask)
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if backend == "auto" and (transformed or (traced and torch.onnx.is_in_onnx_export())):
        backend = "torch"
    chosen = backends.select(backend, input.device)
    if chosen == "torch":
        # Compilers fuse the gathers and every transform supports them; exporters support grid_sample.
        gather = transformed or (compiling and not torch.compiler.is_exporting())
        return (gather_core if gather else grid_sample_core)(input, offset, mask, geometry)
    if transformed:
        raise RuntimeError(
            f"backend {chosen!r} supports neither forward-mode derivatives nor torch.func transforms; "
            "use backend='torch' or 'auto'"
        )
    operators = torch.ops.ops_dcnv3
    return (operators.triton_forward if chosen == "triton" else operators.forward)(input, offset, mask, *geometry)


def dcnv4_row_length(groups: int, points: int) -> int:
    """Length of a row of `dcnv4`: x, y and a weight for every point of every group, rounded up to a multiple of 8."""
    return -(-groups * points * 3 // 8) * 8


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Deformable convolution v4.

    Args:
        input: `(N, H, W, G*D)`.
        offset_mask: `(N, Ho, Wo, R)`: per group `2P` offsets as `(x, y)` pairs, then `P` weights, all groups in a row;
            `R` is `3*G*P` rounded up to a multiple of 8; the padding is ignored.
        kernel_size, stride, padding, dilation, groups, offset_scale, remove_center, backend: as `dcnv3`.

    Returns:
        `(N, Ho, Wo, G*D)`.

    Raises:
        ValueError: arguments or shapes that do not fit together.
    """
    points = kernel_size * kernel_size - bool(remove_center)
    expected = dcnv4_row_length(groups, points)
    if offset_mask.ndim != 4 or offset_mask.shape[-1] != expected:
        raise ValueError(
            f"offset_mask must have shape (N, Ho, Wo, {expected}) for {groups} groups of {points} points; "
            f"got {tuple(offset_mask.shape)}"
        )
    rows = offset_mask[..., : groups * points * 3].unflatten(-1, (groups, points * 3))
    offset, mask = (part.flatten(3) for part in rows.split([points * 2, points], dim=-1))
    window = kernel_size, stride, padding, dilation, groups, offset_scale, remove_center
    return dcnv3(input, offset, mask, *window, backend)


def _pair(value: int | tuple[int, int], name: str, minimum: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(item, int) and item >= minimum for item in pair):
        raise ValueError(f"{name} must be an int or a pair of ints, each at least {minimum}; got {value!r}")
    return pair


def _geometry(
    kernel_size, stride, padding, dilation, groups: int, offset_scale: float, remove_center: bool, mask_is_logits: bool
) -> Geometry:
    geometry = Geometry(
        *_pair(kernel_size, "kernel_size", 1),
        *_pair(stride, "stride", 1),
        *_pair(padding, "padding", 0),
        *_pair(dilation, "dilation", 1),
        groups,
        float(offset_scale),
        bool(remove_center),
        bool(mask_is_logits),
    )
    if geometry.remove_center and not (geometry.kernel_h % 2 and geometry.kernel_w % 2):
        raise ValueError(f"remove_center needs odd kernel sizes; got {geometry.kernel_h}x{geometry.kernel_w}")
    if geometry.points == 0:
        raise ValueError("remove_center with a 1x1 kernel leaves no point to sample")
    extent = max(geometry.dilation_h * geometry.kernel_h, geometry.dilation_w * geometry.kernel_w)
    if not extent * max(abs(geometry.offset_scale), 1.0) < 2**30:
        raise ValueError(
            f"offset_scale must be finite, and kernel_size * dilation * offset_scale below 2^30 pixels; "
            f"got offset_scale {geometry.offset_scale} for an extent of {extent} pixels"
        )
    return geometry


def _check(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> None:
    for name, tensor in (("input", input), ("offset", offset), ("mask", mask)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device} but input is on {input.device}; move them together")
    if input.ndim != 4:
        raise ValueError(f"input must have shape (N, H, W, channels); got {tuple(input.shape)}")
    batch, height, width, channels = input.shape
    if geometry.groups < 1 or channels % geometry.groups:
        raise ValueError(f"groups must divide the channels of input; got {geometry.groups} groups, {channels} channels")
    out_h, out_w = geometry.output_size(height, width)
    if height < 1 or width < 1 or out_h < 1 or out_w < 1:
        raise ValueError(
            f"input of {height}x{width} pixels gives an output of {out_h}x{out_w}; enlarge the input or the padding"
        )
    points = geometry.groups * geometry.points
    for name, tensor, numbers in (("offset", offset, points * 2), ("mask", mask, points)):
        if tensor.shape != (expected := (batch, out_h, out_w, numbers)):
            raise ValueError(
                f"{name} must have shape {expected} for input {tuple(input.shape)}, {geometry.groups} groups and "
                f"{geometry.points} points; got {tuple(tensor.shape)} (all tensors are channels last; a tensor "
                "(N, C, H, W) becomes so by permute(0, 2, 3, 1))"
            )
