"""DCNv3 in the place of `torch.nn.Conv2d`: its arguments, its layout, its output size."""

import torch
from torch import Tensor, nn

from .modules import DCNv3
from .onednn import Linear

__all__ = ["DCNv3Conv2d"]


class GroupedLinear(nn.Module):
    """A linear layer on `(..., in_features)` whose groups of channels do not mix: a 1x1 convolution with `groups`."""

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        for block in self.weight.detach().chunk(groups):
            nn.init.xavier_uniform_(block)

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.weight.unflatten(0, (self.groups, -1))
        y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (self.groups, -1)), blocks).flatten(-2)
        return y if self.bias is None else y + self.bias


class _GridDCNv3(DCNv3):
    """`DCNv3` whose depthwise convolution has the geometry of the sampling grid, so that every geometry fits."""

    def _depthwise_conv(self) -> nn.Conv2d:
        geometry = self.kernel_size, self.stride, self.pad, self.dilation
        return nn.Conv2d(self.channels, self.channels, *geometry, groups=self.channels)


def _square(name: str, value: int | tuple[int, int]) -> int:
    size = value[0] if isinstance(value, (tuple, list)) and len(value) == 2 and value[0] == value[1] else value
    if not isinstance(size, int) or size < (name != "padding"):
        least = "an int of at least 0" if name == "padding" else "a positive int"
        raise ValueError(f"{name} must be {least}, or two equal ones; got {value!r}")
    return size


class DCNv3Conv2d(nn.Module):
    """A DCNv3 layer with the arguments of `torch.nn.Conv2d`: `(N, in_channels, H, W)` to `(N, out_channels, Ho, Wo)`.

    A 1x1 projection of `in_channels` to `in_channels`, the DCNv3 operator, and a 1x1 projection to `out_channels`.
    Offsets and point weights come from a depthwise convolution of the input with the same geometry, LayerNorm, GELU and
    linear layers. A new layer samples where `Conv2d` does, and all points of its kernel have the same weight.
    The layer inside is `dcn`, a `DCNv3`; `layer.dcn.backend` chooses the operator's backend.

    Args:
        in_channels, out_channels: as in `Conv2d`; the last projection changes the width.
        kernel_size: of the sampling grid, which has `kernel_size ** 2` points before offsets, and of the depthwise
            convolution. An int or two equal ones, as for `stride`, `padding` and `dilation`.
        stride, padding, dilation: of both; the output has the size of `Conv2d`'s, and samples outside the input are 0.
        groups: as in `Conv2d`: blocks of channels that the projections do not mix; `in_channels`: a depthwise layer.
            The offsets always depend on all input channels.
        bias: of the last projection.
        deform_groups: blocks of input channels with their own offsets and point weights, the `group` of `DCNv3`;
            independent of `groups`; defaults to as many as have at least 16 channels each.
        offset_scale: factor on the kernel's extent and on the offsets.

    Raises:
        ValueError: arguments that do not fit together, another `padding` than numbers, or an input of another shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        deform_groups: int | None = None,
        offset_scale: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = in_channels, out_channels
        if min(*sizes, groups) < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups must divide in_channels and out_channels; got {groups} for {sizes}")
        if deform_groups is None:
            deform_groups = next(g for g in range(max(in_channels // 16, 1), 0, -1) if in_channels % g == 0)
        if deform_groups < 1 or in_channels % deform_groups:
            raise ValueError(f"deform_groups must divide in_channels; got {deform_groups} for {in_channels}")
        window = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        kernel_size, *others = (_square(name, value) for name, value in window.items())
        self.in_channels, self.out_channels = sizes
        self.dcn = _GridDCNv3(in_channels, kernel_size, None, *others, deform_groups, offset_scale)
        self.dcn.output_proj = Linear(*sizes, bias=bias)
        self.dcn.reset_parameters()
        if groups > 1:
            self.dcn.input_proj = GroupedLinear(in_channels, in_channels, groups)
            self.dcn.output_proj = GroupedLinear(*sizes, groups, bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ValueError(f"input must have shape (N, {self.in_channels}, H, W); got {tuple(input.shape)}")
        return self.dcn(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
