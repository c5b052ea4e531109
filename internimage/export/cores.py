"""Rewrite a model so that its DCNv3 and DCNv4 layers consist of operators that other runtimes support.

`grid_sample` is GridSample, native in ONNX Runtime, OpenVINO, TensorRT and ExecuTorch; `deform_conv` is ONNX's
DeformConv; `gather` is arithmetic and gathers, which compilers fuse; `custom` keeps the operator as one node.
"""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from internimage.errors import UserError
from internimage.inference import fold_layer_scale
from internimage.layers import Block
from ops_dcnv3 import DCNv3, DCNv4
from ops_dcnv3.reference import Geometry

from .sampling import SAMPLERS, Predictors

__all__ = ["CORES", "layer_geometry", "prepare", "shared_copy"]

CORES = tuple(SAMPLERS)


def layer_geometry(layer: DCNv3 | DCNv4, mask_is_logits: bool) -> Geometry:
    """The static arguments of the operator in a layer."""
    pairs = (layer.kernel_size, layer.stride, layer.pad, layer.dilation)
    return Geometry(
        *(size for size in pairs for _ in range(2)),
        layer.group,
        float(layer.offset_scale),
        bool(layer.remove_center),
        mask_is_logits,
    )


def _rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer on `(..., C)` as one matrix product, which runtimes fuse with its bias."""
    return layer(x.flatten(0, -2)).view(*x.shape[:-1], layer.out_features)


class CoreDCNv3(nn.Module):
    """A `DCNv3` layer that computes with one of `CORES`: `(N, H, W, C)` to `(N, Ho, Wo, C)`."""

    def __init__(self, layer: DCNv3, core: str) -> None:
        super().__init__()
        predictors = Predictors(layer.offset.weight, layer.offset.bias, layer.mask.weight, layer.mask.bias)
        self.dw_conv = layer.dw_conv
        self.input_proj, self.output_proj = layer.input_proj, layer.output_proj
        self.sampler = SAMPLERS[core](layer_geometry(layer, mask_is_logits=True), predictors)
        self.gate = None
        if layer.center_feature_scale:
            # Weights, not activations, are repeated for the channels of a group.
            weight = layer.center_feature_scale_proj_weight.repeat_interleave(layer.group_channels, 0)
            bias = layer.center_feature_scale_proj_bias.repeat_interleave(layer.group_channels, 0)
            self.gate = nn.ParameterList([nn.Parameter(tensor.detach(), False) for tensor in (weight, bias)])

    def forward(self, input: Tensor) -> Tensor:
        value = _rows(self.input_proj, input)
        features = self.dw_conv(input.permute(0, 3, 1, 2))
        output = self.sampler(value, features)
        if self.gate is not None:
            output = output + (value - output) * F.linear(features, *self.gate).sigmoid()
        return _rows(self.output_proj, output)


class CoreDCNv4(nn.Module):
    """A `DCNv4` layer that computes with one of `CORES`: `(N, H, W, C)` to `(N, Ho, Wo, C)`."""

    def __init__(self, layer: DCNv4, core: str) -> None:
        super().__init__()
        geometry = layer_geometry(layer, mask_is_logits=False)
        self.value_proj = None if layer.without_pointwise else layer.value_proj
        self.output_proj = None if layer.without_pointwise else layer.output_proj
        self.offset_mask_dw = None if layer.dw_kernel_size is None else layer.offset_mask_dw
        parts = []
        for tensor in (layer.offset_mask.weight, layer.offset_mask.bias):
            # One group after the other, each with its offsets and mask; then padding.
            rows = tensor[: layer.group * geometry.points * 3].unflatten(0, (layer.group, geometry.points * 3))
            parts.append([part.flatten(0, 1) for part in rows.split([geometry.points * 2, geometry.points], dim=1)])
        (offset_weight, mask_weight), (offset_bias, mask_bias) = parts
        self.sampler = SAMPLERS[core](geometry, Predictors(offset_weight, offset_bias, mask_weight, mask_bias))

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        x = input if input.ndim == 4 else input.unflatten(1, shape)
        value = x if self.value_proj is None else _rows(self.value_proj, x)
        features = x
        if self.offset_mask_dw is not None:
            features = self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        output = self.sampler(value, features)
        output = output if self.output_proj is None else _rows(self.output_proj, output)
        return output if input.ndim == 4 else output.flatten(1, 2)


class FlatMLP(nn.Module):
    """An MLP that sees the pixels of all images as the rows of one matrix."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = mlp.fc1, mlp.act, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        rows = self.fc2(self.act(self.fc1(x.flatten(0, -2))))
        return rows.view(*x.shape[:-1], self.fc2.out_features)


def _replaced(module: nn.Module, core: str) -> nn.Module:
    if isinstance(module, DCNv3):
        return CoreDCNv3(module, core)
    return CoreDCNv4(module, core) if isinstance(module, DCNv4) else module


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients, that shares the memory of the weights."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


def prepare(model: nn.Module, core: str = "grid_sample") -> nn.Module:
    """Return a copy of `model` for exporting: in evaluation mode, without gradients, the operator as `core` has it.

    Layer scales go into neighbouring weights. What is no DCNv3 or DCNv4 layer stays as it is.

    Raises:
        UserError: a core that does not exist.
    """
    if core not in CORES:
        raise UserError(f"unknown core {core!r}; cores are {', '.join(CORES)}")
    model = shared_copy(model)
    for module in list(model.modules()):
        if isinstance(module, Block):
            fold_layer_scale(module)
            module.mlp = FlatMLP(module.mlp)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            replaced = _replaced(child, core)
            if replaced is not child:
                setattr(module, name, replaced)
    return _replaced(model, core)
