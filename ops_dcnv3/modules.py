"""The layers DCNv3 and DCNv4: prediction of offsets and weights, the operator, and its projections.

InternImage (Wang et al., CVPR 2023, section 3.1) and Efficient Deformable ConvNets (Xiong et al., CVPR 2024). Parameter
names are those of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import dcnv3, dcnv4, dcnv4_row_length
from .norm import LayerNorm, is_candidate, norm_gelu, serves
from .onednn import Linear, PackedConv2d, activated_linears, can_fuse, linear
from .schema import has_no_hooks

__all__ = ["DCNv3", "DCNv3_pytorch", "DCNv4", "build_act_layer", "build_norm_layer", "fused_conv_norm_act"]

_ACTIVATIONS = {"GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU}


class ToChannelsFirst(nn.Module):
    """`(N, H, W, C)` to `(N, C, H, W)`, as a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ToChannelsLast(nn.Module):
    """`(N, C, H, W)` to `(N, H, W, C)`, as a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def build_norm_layer(
    dim: int, norm_layer: str = "LN", in_format: str = "channels_last", out_format: str = "channels_last"
) -> nn.Sequential:
    """A LayerNorm ("LN", eps 1e-6) or BatchNorm ("BN") between two layouts, `channels_first` or `channels_last`.

    The permutes are modules, because the released state-dict keys count them (`norm1.1.weight`).
    """
    if norm_layer == "LN":
        norm, norm_format = LayerNorm(dim, eps=1e-6), "channels_last"
    elif norm_layer == "BN":
        norm, norm_format = nn.BatchNorm2d(dim), "channels_first"
    else:
        raise ValueError(f"norm_layer must be 'LN' or 'BN'; got {norm_layer!r}")
    change = {"channels_first": ToChannelsFirst, "channels_last": ToChannelsLast}
    layers: list[nn.Module] = [norm]
    if in_format != norm_format:
        layers.insert(0, change[norm_format]())
    if out_format != norm_format:
        layers.append(change[out_format]())
    return nn.Sequential(*layers)


def _check_channels_last(x: Tensor, channels: int) -> None:
    """Raise `ValueError` unless `x` is `(N, H, W, channels)`."""
    if x.ndim != 4 or x.shape[-1] != channels:
        first = x.ndim == 4 and x.shape[1] == channels
        hint = "; its channels come second: pass input.permute(0, 2, 3, 1)" if first else ""
        raise ValueError(f"input must have shape (N, H, W, {channels}); got {tuple(x.shape)}{hint}")


def build_act_layer(act_layer: str) -> nn.Module:
    """The activation with this name: GELU, ReLU or SiLU."""
    if act_layer not in _ACTIVATIONS:
        raise ValueError(f"act_layer must be one of {', '.join(_ACTIVATIONS)}; got {act_layer!r}")
    return _ACTIVATIONS[act_layer]()


def fused_conv_norm_act(
    x: Tensor, conv: nn.Module, norm: nn.Sequential, activation: nn.Module, *parents: nn.Module
) -> Tensor | None:
    """Convolution, then its bias, LayerNorm and exact GELU as one kernel: `(N, C, H, W)` to `(N, Ho, Wo, C)`.

    None if the modules must be called instead: on CPUs, for other norms and activations, or if one of them or of
    `parents` has hooks.
    """
    if not is_candidate(x):
        return None
    layer = next((part for part in norm if type(part) is LayerNorm), None)
    if layer is None or not serves(x, layer, conv.bias):
        return None
    if type(conv) not in (nn.Conv2d, PackedConv2d) or type(activation) is not nn.GELU:
        return None
    if activation.approximate != "none" or not has_no_hooks(conv, norm, *norm, activation, *parents):
        return None
    return norm_gelu(conv._conv_forward(x, conv.weight, None).permute(0, 2, 3, 1), layer, conv.bias)


def _check_sizes(kernel_size: int, dw_kernel_size: int, stride: int, pad: int, dilation: int) -> None:
    """Raise `ValueError` unless the sampling grid and the depthwise branch have the same output size."""
    sizes = {"kernel_size": kernel_size, "dw_kernel_size": dw_kernel_size, "stride": stride, "dilation": dilation}
    for name, size in (*sizes.items(), ("pad", pad)):
        if not isinstance(size, int) or size < (name != "pad"):
            raise ValueError(f"{name} of the layer must be one positive int; got {size!r} (dcnv3() takes pairs too)")
    needed = dilation * (kernel_size - 1) - (dw_kernel_size - 1) % 2
    if 2 * pad != needed:
        remedy = f"pad must be {needed // 2}" if needed % 2 == 0 else "kernel_size and dw_kernel_size must both be odd"
        given = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{remedy} for {given}; got pad {pad}")


def cast_once(x: Tensor) -> Tensor:
    """Cast like autocast, but once for both layers that read `x`: each would make and save its own copy."""
    kind = x.device.type
    # For some devices, such as meta, `is_autocast_enabled` raises an error.
    if x.dtype != torch.float32 or kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def _reset(predictors: list[nn.Module], projections: list[nn.Module]) -> None:
    """Initialize as an undeformed kernel: zero offsets and point weights; Xavier projections."""
    for layer in (*predictors, *projections):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for layer in predictors:
        nn.init.zeros_(layer.weight)
    for layer in projections:
        nn.init.xavier_uniform_(layer.weight)


def _frozen_linear(weight: Tensor, bias: Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in (weight, bias))
    return layer


class DCNv3(nn.Module):
    """The DCNv3 layer, `(N, H, W, C)` to `(N, Ho, Wo, C)`.

    Args:
        channels: `C`, of input and output.
        kernel_size: of the sampling grid.
        dw_kernel_size: of the depthwise convolution before offsets and mask; defaults to `kernel_size`.
        stride, pad, dilation: of the sampling grid, whose output size must be that of the depthwise convolution.
        group: number of groups; must divide `channels`.
        offset_scale: factor on the kernel's extent and on the offsets.
        act_layer: GELU, ReLU or SiLU.
        norm_layer: LN or BN.
        center_feature_scale: blend the output with the value projection, gated per group (InternImage-H and -G).
        remove_center: leave out the kernel's central point.
        backend: of `ops_dcnv3.dcnv3`; the attribute `backend` can be changed later.

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if channels < 1 or group < 1 or channels % group:
            raise ValueError(f"group must divide channels; got {group} groups for {channels} channels")
        if center_feature_scale and stride != 1:
            raise ValueError(f"center_feature_scale needs stride 1; got stride {stride}")
        self.channels = channels
        self.kernel_size = kernel_size
        self.dw_kernel_size = dw_kernel_size or kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.group_channels = channels // group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = remove_center
        self.backend = backend

        self.dw_conv = nn.Sequential(
            self._depthwise_conv(),
            build_norm_layer(channels, norm_layer, "channels_first", "channels_last"),
            build_act_layer(act_layer),
        )
        points = kernel_size * kernel_size - int(remove_center)
        self.offset = Linear(channels, group * points * 2)
        self.mask = Linear(channels, group * points)
        self.input_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.predictors: nn.Module | None = None  # see merge_predictors
        self.reset_parameters()

    def _depthwise_conv(self) -> nn.Conv2d:
        """The convolution before offsets and mask; its output must have the size of the sampling grid."""
        _check_sizes(self.kernel_size, self.dw_kernel_size, self.stride, self.pad, self.dilation)
        geometry = self.dw_kernel_size, self.stride, (self.dw_kernel_size - 1) // 2
        return nn.Conv2d(self.channels, self.channels, *geometry, groups=self.channels)

    def reset_parameters(self) -> None:
        """Zero offsets and mask logits, Xavier projections."""
        _reset([self.offset, self.mask], [self.input_proj, self.output_proj])

    def merge_predictors(self) -> None:
        """For inference: compute offsets, mask logits and gate as views of one matrix product.

        Its rows are padded to a multiple of 8 for fast half-precision products. Later changes of the original
        parameters have no effect.
        """
        weights, biases = [self.offset.weight, self.mask.weight], [self.offset.bias, self.mask.bias]
        if self.center_feature_scale:
            weights.append(self.center_feature_scale_proj_weight)
            biases.append(self.center_feature_scale_proj_bias)
        padding = -sum(len(bias) for bias in biases) % 8
        self.predictors = _frozen_linear(
            F.pad(torch.cat(weights), (0, 0, 0, padding)), F.pad(torch.cat(biases), (0, padding))
        )

    def sampling(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Offsets `(N, Ho, Wo, G*P*2)`, mask logits `(N, Ho, Wo, G*P)` and the gate's logits `(N, Ho, Wo, G)`.

        The gate is None without `center_feature_scale`.
        """
        gate = []
        if self.center_feature_scale:
            gate = [self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias]
        # A permuted NHWC tensor is a channels-last NCHW one: the convolution runs without a copy.
        x = input.permute(0, 3, 1, 2)
        conv, norm, activation = self.dw_conv
        x1 = fused_conv_norm_act(x, conv, norm, activation, self.dw_conv)
        if self.predictors is not None:
            points = self.mask.out_features
            rows = self.predictors(self.dw_conv(x) if x1 is None else x1)
            offset, mask, gate, _ = rows.tensor_split((2 * points, 3 * points, 3 * points + self.group), dim=-1)
            return offset, mask, gate if self.center_feature_scale else None
        if x1 is None and has_no_hooks(self.dw_conv) and can_fuse(activation, self.offset, self.mask):
            parameters = (self.offset.weight, self.offset.bias, self.mask.weight, self.mask.bias)
            results = activated_linears(norm(conv(x)), activation, *parameters, *gate)
        else:
            if x1 is None:
                x1 = self.dw_conv(x)
            results = (self.offset(x1), self.mask(x1), *([linear(x1, *gate)] if gate else []))
        return results if gate else (*results, None)

    def forward(self, input: Tensor) -> Tensor:
        _check_channels_last(input, self.channels)
        input = cast_once(input)
        value = self.input_proj(input)
        offset, mask_logits, gate_logits = self.sampling(input)
        geometry = self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.offset_scale
        output = dcnv3(value, offset, mask_logits, *geometry, self.remove_center, self.backend, mask_is_logits=True)
        if gate_logits is not None:
            gate = gate_logits.sigmoid().unsqueeze(-1)  # one for all channels of a group
            groups = (self.group, self.group_channels)
            output = (output.unflatten(-1, groups) * (1 - gate) + value.unflatten(-1, groups) * gate).flatten(-2)
        return self.output_proj(output)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, pad={self.pad}, "
            f"dilation={self.dilation}, group={self.group}, offset_scale={self.offset_scale}, backend={self.backend!r}"
        )


class DCNv3_pytorch(DCNv3):
    """`DCNv3` on the pure-PyTorch backend."""

    def __init__(self, *args, backend: str = "torch", **kwargs) -> None:
        super().__init__(*args, backend=backend, **kwargs)


class DCNv4(nn.Module):
    """The DCNv4 layer, `(N, L, C)` with its `(H, W)`, or `(N, H, W, C)`, to the same layout.

    Args:
        channels: `C`, of input and output.
        kernel_size, stride, pad, dilation: of the sampling grid.
        group: number of groups; must divide `channels`.
        offset_scale: factor on the kernel's extent and on the offsets.
        dw_kernel_size: of a depthwise convolution before offsets and weights; None for no convolution.
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
        self.offset_mask = Linear(channels, dcnv4_row_length(group, points))
        if not without_pointwise:
            self.value_proj = Linear(channels, channels)
            self.output_proj = Linear(channels, channels, bias=output_bias)
        self.predictors: nn.Module | None = None  # see merge_predictors
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero offsets and point weights, Xavier projections."""
        _reset([self.offset_mask], [] if self.without_pointwise else [self.value_proj, self.output_proj])

    def merge_predictors(self) -> None:
        """For inference: reorder the rows of `offset_mask` once. Later changes of its values have no effect."""
        self.predictors = _frozen_linear(*self._offsets_first())

    def _offsets_first(self) -> list[Tensor]:
        """Weight and bias of `offset_mask`, reordered: the offsets of all groups, then the point weights of all groups.

        Offset and mask are then slices of the product that the kernels read without a copy.
        """
        points = self.kernel_size * self.kernel_size - int(self.remove_center)
        used = self.group * points * 3

        def reorder(rows: Tensor) -> Tensor:
            offset, mask = rows[:used].unflatten(0, (self.group, points * 3)).split([points * 2, points], dim=1)
            return torch.cat([offset.flatten(0, 1), mask.flatten(0, 1), rows[used:]])

        return [reorder(self.offset_mask.weight), reorder(self.offset_mask.bias)]

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
        _check_channels_last(x, self.channels)
        x = cast_once(x)
        value = x if self.without_pointwise else self.value_proj(x)
        features = x
        if self.dw_kernel_size is not None:
            features = self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        geometry = self.kernel_size, self.stride, self.pad, self.dilation, self.group, self.offset_scale
        if self.predictors is None and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            output = dcnv4(value, self.offset_mask(features), *geometry, self.remove_center, self.backend)
        else:
            # Reordering a few weights is cheaper than reordering the offsets and weights of every pixel.
            rows = self.predictors(features) if self.predictors else linear(features, *self._offsets_first())
            points = self.group * (self.kernel_size * self.kernel_size - int(self.remove_center))
            offset, mask, _ = rows.tensor_split((2 * points, 3 * points), dim=-1)
            output = dcnv3(value, offset, mask, *geometry, self.remove_center, self.backend)
        if not self.without_pointwise:
            output = self.output_proj(output)
        return output.flatten(1, 2) if flat else output
