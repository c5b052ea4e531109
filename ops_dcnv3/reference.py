"""DCNv3 in pure PyTorch: two implementations that define the operator on every device.

`grid_sample_core` uses `torch.nn.functional.grid_sample`, in eager mode and for export. `gather_core` uses gathers and
arithmetic, which compilers fuse into one loop. Both follow InternImage (Wang et al., CVPR 2023, section 3.1) and are
exact in float64. Samples at positions that are not finite are zero, like samples outside the input.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Geometry", "gather_core", "grid_sample_core", "sampling_locations"]


class Geometry(NamedTuple):
    """The static arguments of the operator, in the order of its `torch.library` schema."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    offset_scale: float
    remove_center: bool
    mask_is_logits: bool

    @property
    def points(self) -> int:
        """Sampling points per output pixel and group."""
        return self.kernel_h * self.kernel_w - self.remove_center

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of `height` x `width` pixels."""
        out_h = (height + 2 * self.padding_h - self.dilation_h * (self.kernel_h - 1) - 1) // self.stride_h + 1
        out_w = (width + 2 * self.padding_w - self.dilation_w * (self.kernel_w - 1) - 1) // self.stride_w + 1
        return out_h, out_w


def _axis_positions(out_size: int, kernel: int, stride: int, padding: int, dilation: int, scale: float, like: Tensor):
    """Undeformed positions along one axis: of each output, `(out_size,)`, and of each tap, `(kernel,)`."""
    center = dilation * (kernel - 1) // 2
    outputs = torch.arange(out_size, dtype=like.dtype, device=like.device) * stride + (center - padding)
    taps = (torch.arange(kernel, dtype=like.dtype, device=like.device) * dilation - center) * scale
    return outputs, taps


def sampling_locations(offset: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Where the operator samples its input.

    Args:
        offset: `(N, Ho, Wo, G*P*2)`, `(x, y)` pairs, in pixels before `offset_scale`.
        geometry: the operator's static arguments.

    Returns:
        Columns and rows in input pixels (0 is the centre of the first pixel), each `(N, Ho, Wo, G, P)`.
    """
    g = geometry
    batch, out_h, out_w, _ = offset.shape
    cols, taps_x = _axis_positions(out_w, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w, g.offset_scale, offset)
    rows, taps_y = _axis_positions(out_h, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h, g.offset_scale, offset)
    # Points run over the kernel column by column: x is the outer index, y the inner one.
    points_x = taps_x.repeat_interleave(g.kernel_h)
    points_y = taps_y.repeat(g.kernel_w)
    if g.remove_center:
        middle = points_x.numel() // 2
        points_x = torch.cat([points_x[:middle], points_x[middle + 1 :]])
        points_y = torch.cat([points_y[:middle], points_y[middle + 1 :]])
    offset = offset.reshape(batch, out_h, out_w, g.groups, g.points, 2)
    x = cols[:, None, None] + points_x + offset[..., 0] * g.offset_scale
    y = rows[:, None, None, None] + points_y + offset[..., 1] * g.offset_scale
    return x, y


def _prepare(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Widen half types to float32 and return input, offset, and the mask as `(N, Ho, Wo, G, P)` weights."""
    if input.dtype in (torch.float16, torch.bfloat16):
        # Half-precision coordinates are wrong by pixels, and half-precision grid_sample on CPU returns garbage for
        # planes with more than 32767 elements (torch 2.14).
        input, offset, mask = input.float(), offset.float(), mask.float()
    mask = mask.reshape(*offset.shape[:3], geometry.groups, geometry.points)
    return input, offset, mask.softmax(-1) if geometry.mask_is_logits else mask


def grid_sample_core(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """DCNv3 by `grid_sample`. Shapes and dtypes as in `ops_dcnv3.dcnv3`; differentiable once in every tensor.

    Exported and traced graphs do not handle positions that are not finite: their samples depend on the runtime.
    """
    dtype = input.dtype
    input, offset, mask = _prepare(input, offset, mask, geometry)
    batch, height, width, channels = input.shape
    _, out_h, out_w, groups, points = mask.shape
    if batch == 0:
        return (offset.sum() + mask.sum() + input.sum()) * input.new_zeros(0, out_h, out_w, channels).to(dtype)

    x, y = sampling_locations(offset, geometry)
    # grid_sample's align_corners=False convention: pixel p is at (2p + 1) / size - 1.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
        grid = torch.where(grid.abs() < float("inf"), grid, -5)  # two pixels outside or more, without a gradient
    grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, out_h * out_w, points, 2)
    planes = input.permute(0, 3, 1, 2).reshape(batch * groups, channels // groups, height, width)
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    weights = mask.permute(0, 3, 1, 2, 4).reshape(batch * groups, 1, out_h * out_w, points)
    output = (sampled * weights).sum(-1).reshape(batch, channels, out_h, out_w)
    return output.permute(0, 2, 3, 1).contiguous().to(dtype)


def gather_core(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """DCNv3 by explicit bilinear gathers. Shapes and dtypes as in `ops_dcnv3.dcnv3`; differentiable."""
    dtype = input.dtype
    input, offset, mask = _prepare(input, offset, mask, geometry)
    batch, height, width, channels = input.shape
    _, out_h, out_w, groups, points = mask.shape
    depth = channels // groups
    pixels = input.reshape(batch, height * width, groups, depth)

    x, y = sampling_locations(offset, geometry)
    # More than one pixel outside, every corner is invalid. NaN is moved there, since every comparison with it is false.
    # The bounds keep the conversion to integers defined.
    x, y = torch.where(x > -2, x, -2).clamp(max=width + 1), torch.where(y > -2, y, -2).clamp(max=height + 1)
    left, top = x.detach().floor(), y.detach().floor()
    output = input.new_zeros(batch, out_h, out_w, groups, depth)
    for corner_y, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for corner_x, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            row, col = corner_y.clamp(0, height - 1).long(), corner_x.clamp(0, width - 1).long()
            index = (
                (row * width + col)
                .permute(0, 1, 2, 4, 3)
                .reshape(batch, out_h * out_w * points, groups, 1)
                .expand(-1, -1, -1, depth)
            )
            value = pixels.gather(1, index).reshape(batch, out_h, out_w, points, groups, depth)
            weight = (weight_y * weight_x * inside * mask).transpose(-1, -2).unsqueeze(-1)
            output = output + (value * weight).sum(3)
    return output.reshape(batch, out_h, out_w, channels).to(dtype)
