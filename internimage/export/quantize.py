"""int8 post-training quantisation of an ONNX file, and what it costs in accuracy.

Static quantisation with Q/DQ nodes (Jacob et al., CVPR 2018) by ONNX Runtime's quantiser: the linear layers, nearly all
of the weights and most of the time, multiply int8 by int8. The rest stays float32:
- offset and mask projections: an offset's error of 1/256 of its range moves a sample by much of a pixel;
- the stem, the other convolutions and the classifier: first and last layers matter most and cost little;
- norms, activations, sampling.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from internimage.errors import UserError

from .formats import Runtime

__all__ = ["Accuracy", "accuracy_table", "linear_layers", "measure_accuracy", "quantize_onnx", "sampling_layers"]

# Operators that read positions or attention weights, and which of their inputs those are.
_SENSITIVE = {"GridSample": (1,), "DeformConv": (2, 4), "GatherElements": (1,), "DCNv3": (1, 2), "Softmax": (0,)}
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


def quantize_onnx(source: Path, images: list[np.ndarray], path: Path) -> None:
    """Write an int8 version of the ONNX file `source`.

    Args:
        source: float32 model with one input.
        images: real ones, each `(N, 3, H, W)`, normalised; some hundred are enough.
        path: file to write; metadata are kept.

    Raises:
        UserError: no images, or nothing in the file to quantise.
    """
    if not images:
        raise UserError("int8 needs images to measure the ranges of activations; give a folder of them with --images")
    model = onnx.load(source)
    layers = linear_layers(model.graph)
    if not layers:
        raise UserError(f"{source} has no float32 linear layers to quantise; export it without --half and --int8 first")
    external = model.ByteSize() > 2**31 - 2**20
    # The advice to pre-process the file is followed already: the exporter's graph is folded and has shapes.
    logging.disable(logging.WARNING)
    quantize_static(
        source,
        path,
        _Reader(model.graph.input[0].name, images),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=layers,
        op_types_to_quantize=list(_LINEAR),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=external,
        # The sums leave the product as float32: quantising them as well would gain nothing here.
        extra_options={"OpTypesToExcludeOutputQuantization": list(_LINEAR)},
    )
    logging.disable(logging.NOTSET)
    quantized = onnx.load(path, load_external_data=False)
    if not quantized.metadata_props:
        quantized.metadata_props.extend(model.metadata_props)
        onnx.save_model(quantized, path)


class Accuracy(NamedTuple):
    """Share of images whose first class, and whose first five, hold the right one."""

    images: int
    top1: float
    top5: float


def measure_accuracy(runtime: Runtime, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Accuracy:
    """Accuracy of a classifier over batches of images `(N, 3, H, W)` and labels `(N,)`."""
    count = first = five = 0
    for images, labels in batches:
        ranking = np.argsort(-runtime(images)[0], axis=1)
        hits = ranking[:, :5] == labels[:, None]
        count, first, five = count + len(labels), first + int(hits[:, 0].sum()), five + int(hits.sum())
    if not count:
        raise UserError("there are no labelled images to measure accuracy on")
    return Accuracy(count, first / count, five / count)


def accuracy_table(results: dict[str, tuple[Accuracy, Path]]) -> str:
    """Accuracy and file size by name, in Markdown."""
    lines = ["| model | top-1 | top-5 | images | MB |", "|---|--:|--:|--:|--:|"]
    for name, (accuracy, path) in results.items():
        size = sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*") if _belongs(file, path)) / 1e6
        lines.append(f"| {name} | {accuracy.top1:.2%} | {accuracy.top5:.2%} | {accuracy.images} | {size:.2f} |")
    return "\n".join(lines)


def _belongs(file: Path, path: Path) -> bool:
    """Whether `file` is the model itself or holds its weights."""
    return file.name in (path.name, f"{path.name}.data", f"{path.stem}.bin")
