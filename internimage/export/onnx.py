"""ONNX by PyTorch's exporter, run by ONNX Runtime.

Files have opset 19 and standard operators only. Opset 20 has no advantage, and TensorRT's parsers before 2026 silently
read its GridSample mode `linear` as `nearest`. `--core custom` writes nodes `DCNv3` of the domain `ops_dcnv3`, for the
plugin in `tensorrt/plugin`; ONNX's reference implementation checks such files.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from onnxscript import opset19 as op

from internimage.errors import UserError
from ops_dcnv3.reference import Geometry

from .cores import prepare
from .formats import Runtime
from .progress import phase, quiet
from .sampling import DOMAIN
from .spec import Exportable

__all__ = ["load", "write"]

OPSET = 19  # the first one with DeformConv
_SMALLEST_TRACED = 64  # pixels: two at stride 32
_LARGEST_FILE = 2**31 - 2**26  # bytes of weights; protobuf reads less than 2**31 in all


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


_TRANSLATIONS = {torch.ops.torchvision.deform_conv2d.default: _deform_conv2d}


def to_onnx(exportable: Exportable, core: str, half: bool) -> onnx_ir.Model:
    """The ONNX model with its metadata; it shares PyTorch's weights, so that large ones are not in memory twice."""
    model = prepare(exportable.model, core)
    images = exportable.images
    dynamic_shapes = None
    if exportable.dynamic:
        # The exporter takes sizes of one as constants: the batch, and from images below 64 pixels the last level.
        images = images.repeat(2, 1, *(-(-_SMALLEST_TRACED // length) for length in images.shape[2:]))[:2]
        dynamic_shapes = ({0: "batch", 2: "height", 3: "width"},)
    if half:
        model = _HalfInside(model.half())
    with phase("Writing the model as an ONNX graph"), quiet():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            input_names=["images"],
            output_names=list(exportable.output_names),
            custom_translation_table=_TRANSLATIONS | exportable.translations(),
            verbose=False,
            optimize=False,
        )
    with phase("Optimising the graph"), quiet():
        # Three of four nodes compute sizes that other nodes also compute. With these removed first, the optimiser,
        # which tries its rules at every node, is much faster: 30 s instead of more than 200 for DINO-T.
        CommonSubexpressionEliminationPass()(program.model)
        program.optimize()
    _strip(program.model)
    program.model.metadata_props.update(exportable.metadata)
    return program.model


def _strip(model: onnx_ir.Model) -> None:
    """Remove the exporter's stack traces from every node: they contain paths and are larger than the graph."""
    model.metadata_props.clear()
    for graph in model.graphs():
        nodes = list(graph)
        outputs = (value for node in nodes for value in node.outputs)
        for item in (graph, *nodes, *graph.inputs, *graph.initializers.values(), *outputs):
            item.metadata_props.clear()
            item.doc_string = None


class _HalfInside(torch.nn.Module):
    """A half-precision model between float32 images and float32 results."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.float() if x.is_floating_point() else x for x in self.model(images.half()))


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write `path`, one file (above 2 GB: with `path.data` beside it)."""
    model = to_onnx(exportable, core, half)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    with phase(f"Writing {weights / 2**20:.0f} MiB of weights"):
        onnx_ir.save(model, path, external_data=f"{path.name}.data" if weights > _LARGEST_FILE else None)
        if core != "custom":
            onnx.checker.check_model(str(path), full_check=True)


class DCNv3(OpRun):
    """The node of `--core custom` for ONNX's reference implementation."""

    op_domain = DOMAIN

    def _run(self, *arrays: np.ndarray, **attributes: int | float) -> tuple[np.ndarray]:
        geometry = (kind(attributes[name]) for name, kind in Geometry.__annotations__.items())
        return (torch.ops.ops_dcnv3.forward(*map(torch.from_numpy, arrays), *geometry).numpy(),)


def load(path: Path, *, threads: int = 1) -> Runtime:
    """Load a file into ONNX Runtime's CPU provider, or, for `--core custom`, into ONNX's slow reference.

    Raises:
        UserError: ONNX Runtime cannot read the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        graph = onnx.load(path, load_external_data=False).graph
        if any(node.domain == DOMAIN for node in graph.node):
            session = ReferenceEvaluator(str(path), new_ops=[DCNv3])
        else:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class of its errors
        raise UserError(f"ONNX Runtime cannot read {path}: {str(error).splitlines()[0]}") from None
    return lambda images: session.run(None, {graph.input[0].name: images})
