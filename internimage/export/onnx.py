"""ONNX by PyTorch's exporter, run by ONNX Runtime.

The default file uses opset 20 and standard operators only; `--core custom` has operators of the domain `ops_dcnv3`.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import opset20 as op
from torch.export import Dim

from internimage.errors import UserError

from . import custom_op
from .cores import prepare
from .exportable import Exportable

__all__ = ["load", "write"]

OPSET = 20


def _deform_conv2d(
    input, weight, offset, mask, bias, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
):  # fmt: skip
    """`torchvision::deform_conv2d` in ONNX."""
    return op.DeformConv(
        input,
        weight,
        offset,
        bias,
        mask,
        dilations=(dilation_h, dilation_w),
        group=groups,
        kernel_shape=tuple(weight.shape[2:]),
        offset_group=offset_groups,
        pads=(pad_h, pad_w, pad_h, pad_w),
        strides=(stride_h, stride_w),
    )


def _translations(core: str) -> dict:
    """How to write operators that PyTorch's exporter does not know."""
    table = {torch.ops.torchvision.deform_conv2d.default: _deform_conv2d}
    if core == "custom":
        table.update(custom_op.translations())
    return table


def to_onnx(exportable: Exportable, core: str, half: bool) -> onnx.ModelProto:
    """The ONNX model with its metadata, checked."""
    model = prepare(exportable.model, core)
    images = exportable.samples[0]
    dynamic_shapes = None
    if exportable.dynamic:
        # A batch of one would be taken for a constant.
        images = images.repeat(2, 1, 1, 1)[:2]
        dynamic_shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    if half:
        model, images = _HalfInside(model.half()), images
    elif core == "custom":
        custom_op.fuse(model)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            input_names=["images"],
            output_names=list(exportable.output_names),
            custom_translation_table=_translations(core) | exportable.translations(),
            verbose=False,
        )
    proto = program.model_proto
    _strip(proto.graph)
    for key, value in exportable.metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def _strip(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes on every node: stack traces with this machine's paths, larger than the graph."""
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _strip(inner)


class _HalfInside(torch.nn.Module):
    """A half-precision model between float32 images and float32 results."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.float() if x.is_floating_point() else x for x in self.model(images.half()))


class _quiet:
    """Silences the exporter's loggers, whose progress marks are no news to the user."""

    def __enter__(self) -> None:
        loggers = map(logging.getLogger, ("torch.onnx", "onnxscript"))
        self.levels = {logger: logger.level for logger in loggers}
        for logger in self.levels:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in self.levels.items():
            logger.setLevel(level)


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write `path`, one file (above 2 GB: with `path.data` beside it)."""
    proto = to_onnx(exportable, core, half)
    path.parent.mkdir(parents=True, exist_ok=True)
    external = proto.ByteSize() > 2**31 - 2**20
    onnx.save_model(proto, path, save_as_external_data=external, location=f"{path.name}.data" if external else None)
    if core != "custom":
        onnx.checker.check_model(str(path), full_check=True)


class load:
    """A file in ONNX Runtime's CPU provider; see `formats.Runtime`.

    Raises:
        UserError: ONNX Runtime cannot read or run the file.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if custom_op.is_used(path):
            custom_op.register(options)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class of its errors
            raise UserError(f"ONNX Runtime cannot read {path}: {str(error).splitlines()[0]}") from None
        self.input_name = self.session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {self.input_name: images})
