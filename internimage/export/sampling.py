"""The operator's forms for other runtimes, with as much work as possible moved from activations to weights.

A sampler takes the projected values and the features that predict offsets and mask. Its offset and mask projections are
rewritten once: offset scale, tap positions, the order of taps and coordinates, and the removed centre become part of
weights and biases. Projections multiply from the left, `W @ features^T`, so that offsets, mask and samples are planes
of pixels in contiguous memory.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ops_dcnv3.reference import Geometry, gather_core

__all__ = ["DOMAIN", "SAMPLERS", "Predictors", "Sampler"]

DOMAIN = "ops_dcnv3"  # of the operator's own node in ONNX

_NO_WEIGHT = -1e4  # the logit of a point that does not exist; its exponential is zero in every floating-point type


class Predictors(NamedTuple):
    """The linear maps from `C` features to offsets, (x, y) of every group and point, and to the mask or its logits."""

    offset_weight: Tensor  # (G*P*2, C)
    offset_bias: Tensor
    mask_weight: Tensor  # (G*P, C)
    mask_bias: Tensor


class Sampler(nn.Module):
    """Values `(N, H, W, G*D)` and features `(N, Ho, Wo, C)` to the operator's result `(N, Ho, Wo, G*D)`."""

    def __init__(self, geometry: Geometry, predictors: Predictors) -> None:
        super().__init__()
        self.geometry = geometry
        self.setup(*(tensor.detach().clone() for tensor in predictors))

    def keep(self, **tensors: Tensor) -> None:
        """Register constants."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def setup(self, offset_weight: Tensor, offset_bias: Tensor, mask_weight: Tensor, mask_bias: Tensor) -> None:
        """Rewrite the predictors; by default they stay unchanged."""
        self.keep(offset_weight=offset_weight, offset_bias=offset_bias, mask_weight=mask_weight, mask_bias=mask_bias)

    def mask_planes(self, features: Tensor) -> Tensor:
        """Features `(N, C, L)` to point weights `(N, G, points, L)`."""
        logits = torch.matmul(self.mask_weight, features) + self.mask_bias[:, None]
        logits = logits.unflatten(1, (self.geometry.groups, len(self.mask_bias) // self.geometry.groups))
        return logits.softmax(2) if self.geometry.mask_is_logits else logits


def _taps(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Undeformed positions `(P,)` of the points relative to the kernel's centre, x and y, column by column."""
    g = geometry
    columns = torch.arange(g.kernel_w) * g.dilation_w - g.dilation_w * (g.kernel_w - 1) // 2
    rows = torch.arange(g.kernel_h) * g.dilation_h - g.dilation_h * (g.kernel_h - 1) // 2
    x, y = columns.repeat_interleave(g.kernel_h), rows.repeat(g.kernel_w)
    if g.remove_center:
        kept = torch.arange(len(x)) != len(x) // 2
        x, y = x[kept], y[kept]
    return x.float(), y.float()


class GridSampler(Sampler):
    """With `grid_sample`."""

    def setup(self, offset_weight: Tensor, offset_bias: Tensor, mask_weight: Tensor, mask_bias: Tensor) -> None:
        g = self.geometry
        weight = offset_weight.view(g.groups, g.points, 2, -1) * g.offset_scale
        # The regular grid is part of the bias: positions are then a linear map plus the output pixel's position.
        bias = (offset_bias.view(g.groups, g.points, 2) + torch.stack(_taps(g), -1).to(offset_bias)) * g.offset_scale
        super().setup(weight.transpose(1, 2).flatten(0, 2), bias.transpose(1, 2).flatten(), mask_weight, mask_bias)

    def _places(self, out_size: tuple[int, int], size: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale `(2, 1, 1)` and shift `(2, 1, L)`, x and y, from pixels to grid_sample's coordinates, -1 to 1."""
        g = self.geometry
        paddings, strides = (g.padding_w, g.padding_h), (g.stride_w, g.stride_h)
        extents = (g.dilation_w * (g.kernel_w - 1) // 2, g.dilation_h * (g.kernel_h - 1) // 2)
        shifts, scales = [], []
        for axis in (0, 1):
            place = torch.arange(out_size[1 - axis], dtype=like.dtype, device=like.device) * strides[axis]
            # align_corners=False: pixel p is at (2p + 1) / size - 1.
            shifts.append((2 * (place + extents[axis] - paddings[axis]) + 1) / size[1 - axis] - 1)
            scales.append(torch.full((1, 1), 2.0, dtype=like.dtype, device=like.device) / size[1 - axis])
        x, y = shifts[0].expand(out_size), shifts[1][:, None].expand(out_size)
        return torch.stack(scales), torch.stack([x, y]).reshape(2, 1, -1)

    def forward(self, value: Tensor, features: Tensor) -> Tensor:
        _, height, width, channels = value.shape
        batch, out_h, out_w, _ = features.shape
        groups, points = self.geometry.groups, self.geometry.points
        # Shapes without -1: symbolic divisions make exporters slow.
        features = features.flatten(1, 2).transpose(1, 2)
        # Sampling is in float32: half-precision coordinates are off by pixels.
        pixels = (torch.matmul(self.offset_weight, features) + self.offset_bias[:, None]).float()
        scale, shift = self._places((out_h, out_w), (height, width), pixels)
        grid = pixels.unflatten(1, (groups, 2, points)) * scale + shift
        grid = grid.flatten(0, 1).flatten(2).transpose(1, 2).view(batch * groups, points, out_h * out_w, 2)
        planes = value.permute(0, 3, 1, 2).unflatten(1, (groups, channels // groups)).flatten(0, 1).float()
        sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        mask = self.mask_planes(features).float().flatten(0, 1)
        output = (sampled * mask[:, None]).sum(2).view(batch, channels, out_h * out_w).transpose(1, 2)
        return output.to(value.dtype).unflatten(1, (out_h, out_w))


class DeformConvSampler(Sampler):
    """With a deformable convolution of each channel with a kernel of ones."""

    def setup(self, offset_weight: Tensor, offset_bias: Tensor, mask_weight: Tensor, mask_bias: Tensor) -> None:
        g = self.geometry
        x, y = _taps(g)
        # DeformConv does not scale its kernel positions: the offsets include the difference.
        taps = torch.stack([x, y], -1).to(offset_bias) * (g.offset_scale - 1)
        weight = offset_weight.view(g.groups, g.points, 2, -1) * g.offset_scale
        bias = offset_bias.view(g.groups, g.points, 2) * g.offset_scale + taps
        mask_weight, mask_bias = mask_weight.view(g.groups, g.points, -1), mask_bias.view(g.groups, g.points)
        if g.remove_center:
            middle, none = g.points // 2, _NO_WEIGHT if g.mask_is_logits else 0.0
            weight, bias, mask_weight = (_insert(tensor, middle, 0.0) for tensor in (weight, bias, mask_weight))
            mask_bias = _insert(mask_bias, middle, none)
        # Points row by row, and (y, x) pairs.
        order = torch.arange(g.kernel_h * g.kernel_w).view(g.kernel_w, g.kernel_h).t().flatten()
        super().setup(
            weight[:, order].flip(2).flatten(0, 2),
            bias[:, order].flip(2).flatten(),
            mask_weight[:, order].flatten(0, 1),
            mask_bias[:, order].flatten(),
        )

    def forward(self, value: Tensor, features: Tensor) -> Tensor:
        g = self.geometry
        out_h, out_w = features.shape[1:3]
        channels = value.shape[3]
        features = features.flatten(1, 2).transpose(1, 2)
        offset = (torch.matmul(self.offset_weight, features) + self.offset_bias[:, None]).float()
        mask = self.mask_planes(features).float()
        output = deform_conv2d(
            value.permute(0, 3, 1, 2).float(),
            offset.unflatten(2, (out_h, out_w)),
            torch.ones(channels, 1, g.kernel_h, g.kernel_w),
            stride=(g.stride_h, g.stride_w),
            padding=(g.padding_h, g.padding_w),
            dilation=(g.dilation_h, g.dilation_w),
            mask=mask.flatten(1, 2).unflatten(2, (out_h, out_w)),
        )
        return output.to(value.dtype).permute(0, 2, 3, 1)


def _insert(tensor: Tensor, index: int, value: float) -> Tensor:
    """`tensor (G, P, ...)` with one more point at `index`."""
    point = torch.full_like(tensor[:, :1], value)
    return torch.cat([tensor[:, :index], point, tensor[:, index:]], dim=1)


class GatherSampler(Sampler):
    """With gathers and arithmetic."""

    def forward(self, value: Tensor, features: Tensor) -> Tensor:
        offset = F.linear(features, self.offset_weight, self.offset_bias)
        mask = F.linear(features, self.mask_weight, self.mask_bias)
        return self.operator(value, offset, mask)

    def operator(self, value: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """The operator on values, offsets and mask."""
        return gather_core(value, offset, mask, self.geometry)


class CustomSampler(GatherSampler):
    """With the operator itself: this project's kernels, or in ONNX the node of `tensorrt/plugin`."""

    def operator(self, value: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return torch.ops.ops_dcnv3.forward(value, offset, mask, *self.geometry)
        # Attributes are named as the operator's arguments; ONNX has no boolean ones.
        geometry = self.geometry._asdict()
        attributes = {name: int(item) if isinstance(item, bool) else item for name, item in geometry.items()}
        shape = (*offset.shape[:3], value.shape[3])
        options = {"dtype": value.dtype, "shape": shape, "version": 1}
        return torch.onnx.ops.symbolic(f"{DOMAIN}::DCNv3", (value, offset, mask), attributes, **options)


SAMPLERS = {
    "grid_sample": GridSampler,
    "deform_conv": DeformConvSampler,
    "gather": GatherSampler,
    "custom": CustomSampler,
}
