"""Rewriting a model so that its DCNv3 and DCNv4 layers consist of operators that other runtimes know.

`grid_sample` is GridSample, native in ONNX Runtime, OpenVINO, TensorRT and ExecuTorch; `deform_conv` is ONNX's
DeformConv; `gather` is arithmetic and gathers, which compilers fuse; `custom` keeps the operator as one node.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from internimage.errors import UserError
from internimage.inference import fold_layer_scale
from internimage.layers import Block
from ops_dcnv3 import DCNv3, DCNv4
from ops_dcnv3.reference import Geometry, gather_core, grid_sample_core

__all__ = ["CORES", "prepare"]


def deform_conv_core(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """DCNv3 by `torchvision.ops.deform_conv2d`. Shapes and dtypes as in `ops_dcnv3.dcnv3`."""
    g = geometry
    batch, out_h, out_w, _ = offset.shape
    channels = input.shape[3]
    mask = mask.reshape(batch, out_h, out_w, g.groups, g.points)
    if g.mask_is_logits:
        mask = mask.softmax(-1)
    offset = offset.reshape(batch, out_h, out_w, g.groups, g.points, 2) * g.offset_scale
    full = g.kernel_h * g.kernel_w
    # The kernel's extent is scaled as well; DeformConv's is not, so the difference goes into the offsets.
    index = torch.arange(full, device=input.device)
    columns, rows = index // g.kernel_h, index % g.kernel_h
    taps = torch.stack(
        [
            (columns * g.dilation_w - g.dilation_w * (g.kernel_w - 1) // 2) * (g.offset_scale - 1),
            (rows * g.dilation_h - g.dilation_h * (g.kernel_h - 1) // 2) * (g.offset_scale - 1),
        ],
        dim=-1,
    ).to(offset.dtype)
    if g.remove_center:
        middle = full // 2
        mask = torch.cat([mask[..., :middle], torch.zeros_like(mask[..., :1]), mask[..., middle:]], -1)
        offset = torch.cat([offset[..., :middle, :], torch.zeros_like(offset[..., :1, :]), offset[..., middle:, :]], -2)
    offset = offset + taps
    # Row-major taps, (y, x) pairs.
    order = (columns.view(g.kernel_w, g.kernel_h).t() * g.kernel_h + torch.arange(g.kernel_h)[:, None]).flatten()
    offset = offset[..., order, :].flip(-1).flatten(3).permute(0, 3, 1, 2)
    mask = mask[..., order].flatten(3).permute(0, 3, 1, 2)
    depth = channels // g.groups
    weight = torch.eye(depth, dtype=input.dtype)[:, :, None, None].repeat(g.groups, 1, g.kernel_h, g.kernel_w)
    output = deform_conv2d(
        input.permute(0, 3, 1, 2),
        offset,
        weight,
        stride=(g.stride_h, g.stride_w),
        padding=(g.padding_h, g.padding_w),
        dilation=(g.dilation_h, g.dilation_w),
        mask=mask,
    )
    return output.permute(0, 2, 3, 1)


def custom_core(input: Tensor, offset: Tensor, mask: Tensor, geometry: Geometry) -> Tensor:
    """DCNv3 as the one operator that it is, for a runtime that knows it."""
    return torch.ops.ops_dcnv3.forward(input, offset, mask, *geometry)


CORES: dict[str, Callable[[Tensor, Tensor, Tensor, Geometry], Tensor]] = {
    "grid_sample": grid_sample_core,
    "deform_conv": deform_conv_core,
    "gather": gather_core,
    "custom": custom_core,
}


def _geometry(layer: DCNv3 | DCNv4, mask_is_logits: bool) -> Geometry:
    pairs = (layer.kernel_size, layer.stride, layer.pad, layer.dilation)
    return Geometry(
        *(size for size in pairs for _ in range(2)),
        layer.group,
        float(layer.offset_scale),
        bool(layer.remove_center),
        mask_is_logits,
    )


class CoreDCNv3(nn.Module):
    """A `DCNv3` layer that computes with one of `CORES`: `(N, H, W, C)` to `(N, Ho, Wo, C)`."""

    def __init__(self, layer: DCNv3, core: str) -> None:
        super().__init__()
        self.layer = layer
        self.core = CORES[core]
        self.geometry = _geometry(layer, mask_is_logits=True)

    def forward(self, input: Tensor) -> Tensor:
        layer = self.layer
        value = layer.input_proj(input)
        offset, logits, gate_logits = layer.sampling(input)
        output = self.core(value, offset, logits, self.geometry)
        if gate_logits is not None:
            gate = gate_logits.sigmoid().repeat_interleave(layer.group_channels, dim=-1)
            output = output + (value - output) * gate
        return layer.output_proj(output)


class CoreDCNv4(nn.Module):
    """A `DCNv4` layer that computes with one of `CORES`: `(N, H, W, C)` to `(N, Ho, Wo, C)`."""

    def __init__(self, layer: DCNv4, core: str) -> None:
        super().__init__()
        self.layer = layer
        self.core = CORES[core]
        self.geometry = _geometry(layer, mask_is_logits=False)

    def forward(self, input: Tensor) -> Tensor:
        layer, points = self.layer, self.geometry.points
        value = input if layer.without_pointwise else layer.value_proj(input)
        features = input
        if layer.dw_kernel_size is not None:
            features = layer.offset_mask_dw(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rows = layer.offset_mask(features)[..., : layer.group * points * 3].unflatten(-1, (layer.group, points * 3))
        offset, mask = rows.split([points * 2, points], dim=-1)
        output = self.core(value, offset.flatten(3), mask.flatten(3), self.geometry)
        return output if layer.without_pointwise else layer.output_proj(output)


def prepare(model: nn.Module, core: str = "grid_sample") -> nn.Module:
    """Return a copy of `model` for exporting: in evaluation mode, without gradients, the operator as `core` has it.

    Raises:
        UserError: a core that does not exist.
    """
    if core not in CORES:
        raise UserError(f"unknown core {core!r}; cores are {', '.join(CORES)}")
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    model = copy.deepcopy(model, shared).eval()
    for module in list(model.modules()):
        if isinstance(module, Block):
            fold_layer_scale(module)
    replacements = {DCNv3: CoreDCNv3, DCNv4: CoreDCNv4}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            for kind, replacement in replacements.items():
                if isinstance(child, kind):
                    setattr(module, name, replacement(child, core))
    return model
