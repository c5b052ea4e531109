"""int8 post-training quantisation of exported models.

Static quantisation with Q/DQ nodes (Jacob et al., CVPR 2018) by ONNX Runtime's quantiser: the linear layers, which have
nearly all weights and take most of the time, multiply int8 by int8. The rest stays float32:
- offset and mask projections: an offset's error of 1/256 of its range moves a sample by much of a pixel;
- the stem, the other convolutions and the classifier: first and last layers matter most and cost little;
- norms, activations, sampling.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import Tensor

from internimage.errors import UserError

from . import onnx as onnx_format
from .progress import phase, quiet
from .spec import Exportable

__all__ = ["linear_layers", "quantize_onnx", "sampling_layers", "write_int8"]

# Operators that read positions or attention weights, and which of their inputs those are.
_SENSITIVE = {"GridSample": (1,), "DeformConv": (2, 4), "GatherElements": (1,), "Softmax": (0,)}
_LINEAR = ("MatMul", "Gemm")
_LAYERS = (*_LINEAR, "Conv")


def sampling_layers(graph: onnx.GraphProto) -> set[str]:
    """Names of the layers whose results become sampling positions or softmax weights: offset and mask projections."""
    producers = {output: node for node in graph.node for output in node.output}
    found, seen = set(), set()
    pending = [
        node.input[index]
        for node in graph.node
        for index in _SENSITIVE.get(node.op_type, ())
        if index < len(node.input)
    ]
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in _LAYERS:
            found.add(node.name)
        else:
            pending.extend(node.input)
    return found


def linear_layers(graph: onnx.GraphProto) -> list[str]:
    """Names of the products with a constant matrix that may be quantised."""
    constants = {item.name for item in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    excluded = sampling_layers(graph)
    outputs = {output.name for output in graph.output}
    return [
        node.name
        for node in graph.node
        if node.op_type in _LINEAR
        and node.input[1] in constants
        and node.name not in excluded
        and not outputs.intersection(node.output)
    ]


class _Reader(CalibrationDataReader):
    """Hands calibration images to ONNX Runtime one at a time."""

    def __init__(self, name: str, images: Iterable[np.ndarray]) -> None:
        self.feeds = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantize_onnx(source: Path, images: Sequence[np.ndarray], path: Path, *, symmetric: bool = False) -> None:
    """Write an int8 version of the ONNX file `source`.

    Args:
        source: float32 model with one input.
        images: real ones, each `(N, 3, H, W)`, normalised; some hundred are enough.
        path: file to write; metadata are kept.
        symmetric: no zero points, and biases in float32, as TensorRT asks for.

    Raises:
        UserError: no images, or nothing in the file to quantise.
    """
    if not len(images):
        raise UserError("int8 needs images to measure the ranges of activations; give a folder of them with --images")
    model = onnx.load(source)
    layers = linear_layers(model.graph)
    if not layers:
        raise UserError(f"{source} has no float32 linear layers to quantise; export it without --half and --int8 first")
    external = model.ByteSize() > 2**31 - 2**20
    # Outputs stay float32: quantising them too would gain nothing here.
    extra_options = {"OpTypesToExcludeOutputQuantization": list(_LINEAR)}
    if symmetric:
        extra_options |= {"ActivationSymmetric": True, "QuantizeBias": False}
    # The exporter's graph needs no pre-processing: it is folded and has shapes.
    with phase("Quantising"), quiet():
        quantize_static(
            source,
            path,
            _Reader(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=layers,
            op_types_to_quantize=list(_LINEAR),
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=external,
            extra_options=extra_options,
        )
    quantized = onnx.load(path, load_external_data=False)
    if not quantized.metadata_props:
        quantized.metadata_props.extend(model.metadata_props)
        onnx.save_model(quantized, path)


def write_int8(
    exportable: Exportable, source: Path, path: Path, calibration: Sequence[Tensor], *, core: str, symmetric: bool
) -> None:
    """Write `path`, an int8 version of the ONNX or OpenVINO file `source` of `exportable`, with `quantize_onnx`."""
    batch = 1 if exportable.dynamic else len(exportable.images)
    images = [item.repeat(batch, 1, 1, 1).numpy() for item in calibration]
    if path.suffix == ".onnx":
        return quantize_onnx(source, images, path, symmetric=symmetric)
    from .openvino import convert  # openvino is an optional package

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, quantized = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        onnx_format.write(exportable, source, core=core)
        quantize_onnx(source, images, quantized, symmetric=symmetric)
        convert(quantized, path)
