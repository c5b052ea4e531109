"""The DCNv3 layer, and what else takes ONNX Runtime longer than it need, as nodes of the domain `ops_dcnv3`.

`DCNv3` is the operator: inputs `input`, `offset` and `mask`, attributes named as the arguments of the torch operator.
`DCNv3Features` is the branch from which offsets and mask are predicted: depthwise convolution, LayerNorm, GELU.
`LayerNormalization` and `Gelu` are those of the standard. ONNX Runtime computes them with this project's CPU kernels
once their library is registered:

    options = onnxruntime.SessionOptions()
    custom_op.register(options)  # or options.register_custom_ops_library(str(custom_op.library()))
"""

import functools
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx.defs import OpSchema
from onnxscript import opset20
from onnxscript.values import Opset
from torch import Tensor, nn

from internimage.errors import UserError
from ops_dcnv3 import build, ort_build
from ops_dcnv3.module import ToChannelsLast
from ops_dcnv3.reference import Geometry

__all__ = ["DOMAIN", "fuse", "is_used", "library", "register", "translations"]

DOMAIN, VERSION = "ops_dcnv3", 1


def library() -> Path:
    """Return the library for `SessionOptions.register_custom_ops_library`, built at its first use.

    Raises:
        UserError: it cannot be built here.
    """
    try:
        return ort_build.library()
    except build.BuildError as error:
        raise UserError(f"the custom operator cannot be built: {error}; or export with --core grid_sample") from None


def register(options) -> None:
    """Add the operator to `onnxruntime.SessionOptions`. Raises `UserError` if that cannot be."""
    path = library()
    try:
        options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime has no common base class of its errors
        raise UserError(f"ONNX Runtime does not take {path}: {str(error).splitlines()[0]}") from None


def is_used(path: Path) -> bool:
    """Whether an ONNX file has nodes of the custom operator."""
    return any(item.domain == DOMAIN for item in onnx.load(path, load_external_data=False).opset_import)


@torch.library.custom_op("ops_dcnv3::features", mutates_args=())
def _features(
    input: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, stride_h: int, stride_w: int,
    padding_h: int, padding_w: int, epsilon: float,
) -> Tensor:  # fmt: skip
    """`(N, H, W, C)` to `(N, Ho, Wo, C)`; `weight (Kh, Kw, C)`."""
    x, kernel = input.permute(0, 3, 1, 2), weight.permute(2, 0, 1)[:, None]
    x = F.conv2d(x, kernel, bias, (stride_h, stride_w), (padding_h, padding_w), groups=len(bias)).permute(0, 2, 3, 1)
    return F.gelu(F.layer_norm(x, (len(bias),), scale, shift, epsilon)).contiguous()


@_features.register_fake
def _(input, weight, bias, scale, shift, stride_h, stride_w, padding_h, padding_w, epsilon):
    batch, height, width, channels = input.shape
    out_h = (height + 2 * padding_h - weight.shape[0]) // stride_h + 1
    out_w = (width + 2 * padding_w - weight.shape[1]) // stride_w + 1
    return input.new_empty(batch, out_h, out_w, channels)


class Features(nn.Module):
    """Depthwise convolution, LayerNorm and exact GELU as one node: `(N, C, H, W)` to `(N, Ho, Wo, C)`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.detach().squeeze(1).permute(1, 2, 0).contiguous(), persistent=False)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.norm = norm
        self.geometry = (*conv.stride, *conv.padding, norm.eps)

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Whether `module` is a sequence that this class can replace."""
        if type(module) is not nn.Sequential or [type(part) for part in module] != [nn.Conv2d, nn.Sequential, nn.GELU]:
            return False
        conv, norm, activation = module
        return (
            len(norm) == 2
            and (type(norm[0]) is ToChannelsLast and isinstance(norm[1], nn.LayerNorm))
            and (norm[1].elementwise_affine and norm[1].bias is not None)
            and activation.approximate == "none"
            and conv.in_channels == conv.out_channels == conv.groups
            and conv.dilation == (1, 1)
            and isinstance(conv.padding, tuple)
            and conv.padding_mode == "zeros"
            and conv.weight.dtype == torch.float32
        )

    def forward(self, x: Tensor) -> Tensor:
        input = x.permute(0, 2, 3, 1)
        return _features(input, self.weight, self.bias, self.norm.weight, self.norm.bias, *self.geometry)


def fuse(model: nn.Module) -> nn.Module:
    """Let `model`, made by `cores.prepare`, have nodes of the custom operators where it can; return it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if Features.serves(child):
                conv, norm, _ = child
                setattr(module, name, Features(conv, norm[1]))
    return model


def translations() -> dict[Callable, Callable]:
    """How PyTorch's ONNX exporter writes the operators: its `custom_translation_table`."""
    _define_schemas()
    return {
        torch.ops.ops_dcnv3.forward.default: _dcnv3,
        torch.ops.ops_dcnv3.features.default: _dcnv3_features,
        torch.ops.aten.layer_norm.default: _layer_norm,
        torch.ops.aten.gelu.default: _gelu,
    }


@functools.cache
def _define_schemas() -> None:
    """Tell onnx of the operators, so that onnxscript writes them and `onnx.checker` knows them."""
    _define("DCNv3", ("input", "offset", "mask"), Geometry.__annotations__, ("tensor(float)", "tensor(float16)"))
    integers = dict.fromkeys(("stride_h", "stride_w", "padding_h", "padding_w"), int)
    inputs = ("input", "weight", "bias", "scale", "shift")
    _define("DCNv3Features", inputs, {**integers, "epsilon": float}, ("tensor(float)",))
    _define("LayerNormalization", ("input", "scale", "shift"), {"epsilon": float}, ("tensor(float)",))
    _define("Gelu", ("input",), {}, ("tensor(float)",))


def _define(name: str, inputs: tuple[str, ...], attributes: dict[str, type], types: tuple[str, ...]) -> None:
    kinds = {float: OpSchema.AttrType.FLOAT, int: OpSchema.AttrType.INT, bool: OpSchema.AttrType.INT}
    onnx.defs.register_schema(
        OpSchema(
            name,
            DOMAIN,
            VERSION,
            inputs=[OpSchema.FormalParameter(input, "T") for input in inputs],
            outputs=[OpSchema.FormalParameter("output", "T")],
            type_constraints=[("T", list(types), "")],
            attributes=[OpSchema.Attribute(attribute, kinds[kind]) for attribute, kind in attributes.items()],
        )
    )


def _dcnv3(input, offset, mask, *geometry):
    """`ops_dcnv3::forward` in ONNX; its booleans become integers."""
    attributes = {
        name: kind(value) if kind is float else int(value)
        for (name, kind), value in zip(Geometry.__annotations__.items(), geometry, strict=True)
    }
    return Opset(DOMAIN, VERSION).DCNv3(input, offset, mask, **attributes)


def _dcnv3_features(input, weight, bias, scale, shift, stride_h, stride_w, padding_h, padding_w, epsilon):
    """`ops_dcnv3::features` in ONNX."""
    return Opset(DOMAIN, VERSION).DCNv3Features(
        input, weight, bias, scale, shift,
        stride_h=stride_h, stride_w=stride_w, padding_h=padding_h, padding_w=padding_w, epsilon=epsilon,
    )  # fmt: skip


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps: float = 1e-5, cudnn_enable: bool = True):
    """`aten::layer_norm` in ONNX: ours for float32 and the last dimension, else the standard one."""
    if weight is None:
        weight = opset20.Expand(opset20.CastLike(1.0, input), list(normalized_shape))
    if input.dtype == onnx.TensorProto.FLOAT and len(normalized_shape) == 1 and bias is not None:
        return Opset(DOMAIN, VERSION).LayerNormalization(input, weight, bias, epsilon=eps)
    result, _, _ = opset20.LayerNormalization(input, weight, bias, axis=-len(normalized_shape), epsilon=eps)
    return result


def _gelu(input, approximate: str = "none"):
    """`aten::gelu` in ONNX: ours for float32 and the exact form, else the standard one."""
    if input.dtype == onnx.TensorProto.FLOAT and approximate == "none":
        return Opset(DOMAIN, VERSION).Gelu(input)
    return opset20.Gelu(input, approximate=approximate)
