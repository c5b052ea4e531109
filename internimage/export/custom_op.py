"""The DCNv3 operator as one node of an ONNX graph: domain `ops_dcnv3`, type `DCNv3`, for ONNX Runtime.

The node has inputs `input`, `offset` and `mask`, and the arguments of the torch operator as attributes. ONNX Runtime
computes it with this project's CPU kernels once their library is registered:

    options = onnxruntime.SessionOptions()
    custom_op.register(options)  # or options.register_custom_ops_library(str(custom_op.library()))
"""

import functools
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript.values import Opset

from internimage.errors import UserError
from ops_dcnv3 import build, ort_build
from ops_dcnv3.reference import Geometry

__all__ = ["DOMAIN", "is_used", "library", "register", "translations"]

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


def translations() -> dict[Callable, Callable]:
    """How PyTorch's ONNX exporter writes the operator: its `custom_translation_table`."""
    _define_schema()
    return {torch.ops.ops_dcnv3.forward.default: _dcnv3}


@functools.cache
def _define_schema() -> None:
    """Tell onnx of the operator, so that onnxscript writes it and `onnx.checker` knows it."""
    attributes = [
        OpSchema.Attribute(name, OpSchema.AttrType.FLOAT if kind is float else OpSchema.AttrType.INT)
        for name, kind in Geometry.__annotations__.items()
    ]
    onnx.defs.register_schema(
        OpSchema(
            "DCNv3",
            DOMAIN,
            VERSION,
            "Deformable convolution v3, channels last: see ops_dcnv3.dcnv3.",
            inputs=[OpSchema.FormalParameter(name, "T") for name in ("input", "offset", "mask")],
            outputs=[OpSchema.FormalParameter("output", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
            attributes=attributes,
        )
    )


def _dcnv3(input, offset, mask, *geometry):
    """`ops_dcnv3::forward` in ONNX; its booleans become integers."""
    attributes = {
        name: kind(value) if kind is float else int(value)
        for (name, kind), value in zip(Geometry.__annotations__.items(), geometry, strict=True)
    }
    return Opset(DOMAIN, VERSION).DCNv3(input, offset, mask, **attributes)
