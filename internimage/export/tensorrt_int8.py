"""int8 files that TensorRT takes: Q/DQ nodes around the linear layers, as in `quantize.py`, by TensorRT's rules.

TensorRT multiplies symmetric int8 only: no zero points, biases in float32. What stays float32, and why, is the same.
State: built with TensorRT for RTX 1.7, run in ONNX Runtime; never run by TensorRT.
"""

import logging
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from internimage.errors import UserError

from .quantize import linear_layers

__all__ = ["quantize"]


class _Reader(CalibrationDataReader):
    """Hands images `(N, 3, H, W)` to ONNX Runtime one at a time."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantize(source: Path, images: np.ndarray, path: Path) -> None:
    """Write an int8 version of a float32 ONNX file.

    Args:
        source: file of --core grid_sample with one input.
        images: real ones, `(N, 3, H, W)` float32, normalised; some hundred are enough.
        path: file to write.

    Raises:
        UserError: nothing in the file can be quantised.
    """
    model = onnx.load(source)
    layers = linear_layers(model.graph)
    if not layers:
        raise UserError(f"{source} has no float32 linear layers to quantise; export it without --half and --int8")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to pre-process the file, which the exporter did
    try:
        quantize_static(
            source,
            path,
            _Reader(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=layers,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=model.ByteSize() > 2**31 - 2**20,
            extra_options={
                "ActivationSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )
    finally:
        logging.disable(level)
