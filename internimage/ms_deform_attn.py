"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021) on every device.

On a GPU with the CUDA library it runs its own kernels (`ops_dcnv3.ms_deform_attn`), elsewhere the DCNv3 operator. Both
are weighted sums of bilinear samples; heads are groups. They differ in the positions: DCNv3 adds offsets to a regular
grid. So the queries are arranged as the output of a convolution over each level, and the offsets are the distances from
that grid to the points. Every backend of the operator then also computes attention, with its gradients.

At the sizes of DINO's encoder for 800 x 1280 pixels, one CPU core takes 0.10 s forward and 0.22 s with backward; mmcv's
form with grid_sample takes 1.0 s and 2.7 s (benchmarks/ms_deform_attn.py).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import ops_dcnv3
from ops_dcnv3 import backends, dcnv3

__all__ = ["has_kernel", "ms_deform_attn"]


def has_kernel(value: Tensor) -> bool:
    """Whether `ops_dcnv3.ms_deform_attn` supports this tensor: it is on a GPU, and the CUDA library is there."""
    return value.is_cuda and backends.select("auto", value.device) == "cuda"


def _grid(size: int, kernel: int, least: int) -> tuple[int, int, int]:
    """Return (length, stride, padding) of a convolution's output over `size` pixels: the smallest length >= `least`."""
    stride = max(1, math.ceil((size - kernel + 1) / least))
    padding = max(0, math.ceil(((least - 1) * stride + kernel - size) / 2))
    return (size + 2 * padding - kernel) // stride + 1, stride, padding


def _level(value: Tensor, locations: Tensor, weights: Tensor, heads: int) -> Tensor:
    """Sample one level `(N, H, W, C)` at `(N, Q, heads, P, 2)` in 0 to 1, weights `(N, Q, heads, P)`; `(N, Q, C)`."""
    images, height, width, channels = value.shape
    queries, points = locations.shape[1], locations.shape[3]
    # A grid near a square keeps its coordinates, and so the rounding of the offsets, small.
    rows, stride_h, padding_h = _grid(height, points, math.isqrt(max(queries, 1) - 1) + 1)
    columns, stride_w, padding_w = _grid(width, 1, max(1, math.ceil(queries / rows)))
    spare = rows * columns - queries
    query = torch.arange(queries, device=value.device)
    x = (query % columns) * stride_w - padding_w
    y = (query // columns) * stride_h - padding_h
    tap = torch.arange(points, device=value.device)  # the kernel is a column of `points` pixels
    grid = torch.stack([x[:, None].expand(-1, points), y[:, None] + tap], dim=-1)
    # A location in pixels is location * size - 0.5: the first pixel's centre is at half a pixel.
    # `size` is filled, not copied from the host, which would synchronise a GPU.
    size = torch.stack([locations.new_full((), width), locations.new_full((), height)])
    offset = torch.addcmul(-0.5 - grid[:, None], locations, size).flatten(2)
    output = dcnv3(
        value,
        F.pad(offset, (0, 0, 0, spare)).view(images, rows, columns, -1),
        F.pad(weights.flatten(2), (0, 0, 0, spare)).view(images, rows, columns, -1),
        kernel_size=(points, 1),
        stride=(stride_h, stride_w),
        padding=(padding_h, padding_w),
        groups=heads,
    )
    return output.view(images, rows * columns, channels)[:, :queries]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of the values at the sampling points.

    The CUDA kernel reads and writes the tensors' own type and sums in float32 (float64 for float64 values). Everything
    else converts to float32 first; on a GPU it synchronises if the shapes are a tensor.

    Args:
        value: `(N, keys, heads, D)`, the levels one after the other, rows first.
        spatial_shapes: `(levels, 2)`, height and width: a tensor, or nested sequences of ints.
        sampling_locations: `(N, queries, heads, levels, points, 2)`, x and y; 0 and 1 are the edges of the map. Values
            outside are zero.
        attention_weights: `(N, queries, heads, levels, points)`.

    Returns:
        `(N, queries, heads * D)` in the type of `value`.
    """
    if has_kernel(value):
        return ops_dcnv3.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)
    heads = value.shape[2]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    output = 0.0
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    with torch.autocast(value.device.type, enabled=False):
        maps = value.to(dtype).flatten(2).split([height * width for height, width in shapes], dim=1)
        for level, (height, width) in enumerate(shapes):
            output = output + _level(
                maps[level].unflatten(1, (height, width)),
                sampling_locations[:, :, :, level].to(dtype),
                attention_weights[:, :, :, level].to(dtype),
                heads,
            )
    return output.to(value.dtype)
