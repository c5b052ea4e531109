"""DCNv4 on the kernels of DCNv3: the same sampling, unbounded point weights, and one tensor for offsets and weights.

Efficient Deformable ConvNets (Xiong et al., CVPR 2024); original project https://github.com/OpenGVLab/DCNv4 (MIT
licence). Parameter names are those of the released checkpoints.
"""

import torch
from torch import Tensor, nn

from .functional import dcnv3
from .linear import Linear, linear
from .module import cast_once

__all__ = ["DCNv4", "dcnv4"]


def _row_length(groups: int, points: int) -> int:
    """Numbers per output pixel: x, y and a weight for every point of every group, padded to a multiple of 8."""
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
            `R` is `3*G*P` rounded up to a multiple of 8, the rest is not read.
        kernel_size, stride, padding, dilation, groups, offset_scale, remove_center, backend: as `ops_dcnv3.dcnv3`.

    Returns:
        `(N, Ho, Wo, G*D)`.

    Raises:
        ValueError: arguments or shapes that do not fit together.
    """
    points = kernel_size * kernel_size - bool(remove_center)
    expected = _row_length(groups, points)
    if offset_mask.ndim != 4 or offset_mask.shape[-1] != expected:
        raise ValueError(
            f"offset_mask must have shape (N, Ho, Wo, {expected}) for {groups} groups of {points} points; "
            f"got {tuple(offset_mask.shape)}"
        )
    rows = offset_mask[..., : groups * points * 3].unflatten(-1, (groups, points * 3))
    offset, mask = rows.split([points * 2, points], dim=-1)
    return dcnv3(
        input,
        offset.flatten(3),
        mask.flatten(3),
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        offset_scale,
        remove_center,
        backend,
    )


def _offsets_first(rows: Tensor, groups: int, points: int) -> Tensor:
    """Reorder the rows of `offset_mask` from group by group to all offsets, all weights, padding."""
    used = groups * points * 3
    offset, mask = rows[:used].unflatten(0, (groups, points * 3)).split([points * 2, points], dim=1)
    return torch.cat([offset.flatten(0, 1), mask.flatten(0, 1), rows[used:]])


class DCNv4(nn.Module):
    """The DCNv4 layer, `(N, L, C)` with its `(H, W)`, or `(N, H, W, C)`, to the same layout.

    Args:
        channels: `C`, of input and output.
        kernel_size, stride, pad, dilation: of the sampling grid.
        group: number of groups; must divide `channels`.
        offset_scale: factor on the kernel's extent and on the offsets.
        dw_kernel_size: of a depthwise convolution that feeds offsets and weights; None: the input feeds them.
        remove_center: leave out the kernel's central point.
        output_bias: whether the output projection has a bias.
        without_pointwise: no value and output projections.
        backend: of `ops_dcnv3.dcnv3`.

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if group < 1 or channels % group:
            raise ValueError(f"group must divide channels; got {group} groups for {channels} channels")
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.offset_scale = offset_scale
        self.dw_kernel_size = dw_kernel_size
        self.remove_center = remove_center
        self.without_pointwise = without_pointwise
        self.backend = backend
        if dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv2d(
                channels, channels, dw_kernel_size, stride, (dw_kernel_size - 1) // 2, groups=channels
            )
        points = kernel_size * kernel_size - int(remove_center)
        self.offset_mask = Linear(channels, _row_length(group, points))
        if not without_pointwise:
            self.value_proj = Linear(channels, channels)
            self.output_proj = Linear(channels, channels, bias=output_bias)
        self.predictors: nn.Module | None = None  # see merge_predictors
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero offsets and point weights, Xavier projections."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if not self.without_pointwise:
            for layer in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def merge_predictors(self) -> None:
        """For inference: reorder the rows of `offset_mask` once. Later changes of its values have no effect."""
        weight, bias = self._offsets_first()
        self.predictors = Linear(self.channels, len(weight), device="meta")
        self.predictors.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.predictors.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def _offsets_first(self) -> list[Tensor]:
        """Weight and bias of `offset_mask`, the offsets of all groups before the point weights of all groups.

        Offset and mask are then dense columns of the product, which the kernels read as they are.
        """
        points = self.kernel_size * self.kernel_size - int(self.remove_center)
        return [_offsets_first(rows, self.group, points) for rows in (self.offset_mask.weight, self.offset_mask.bias)]

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Apply the layer.

        Args:
            input: `(N, H, W, C)`, or `(N, L, C)` with `L = H * W`.
            shape: `(H, W)` of an `(N, L, C)` input; None: a square.

        Raises:
            ValueError: `shape` that does not fit.
        """
        x = input
        if flat := input.ndim == 3:
            height, width = shape or (round(input.shape[1] ** 0.5),) * 2
            if height * width != input.shape[1]:
                raise ValueError(
                    f"shape {(height, width)} is not the input's {input.shape[1]} positions; pass its (H, W)"
                )
            x = input.unflatten(1, (height, width))
        x = cast_once(x)
        value = x if self.without_pointwise else self.value_proj(x)
        features = x
        if self.dw_kernel_size is not None:
            features = self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        geometry = self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.offset_scale
        if self.predictors is None and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            output = dcnv4(value, self.offset_mask(features), *geometry, self.remove_center, self.backend)
        else:
            # Reordering a few weights is cheaper than taking every pixel's offsets from between its point weights.
            rows = self.predictors(features) if self.predictors else linear(features, *self._offsets_first())
            points = self.group * (self.kernel_size * self.kernel_size - int(self.remove_center))
            offset, mask, _ = rows.tensor_split((2 * points, 3 * points), dim=-1)
            output = dcnv3(value, offset, mask, *geometry, self.remove_center, self.backend)
        if not self.without_pointwise:
            output = self.output_proj(output)
        return output.flatten(1, 2) if flat else output
