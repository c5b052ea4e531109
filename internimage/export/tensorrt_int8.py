"""int8 files that TensorRT takes: Q/DQ nodes around the linear layers, as in `quantize.py`, by TensorRT's rules.

TensorRT multiplies symmetric int8 only: no zero points, biases in float32. What stays float32, and why, is the same.
State: built with TensorRT for RTX 1.7, run in ONNX Runtime; never run by TensorRT.
"""

from pathlib import Path

import numpy as np

from .quantize import quantize_onnx

__all__ = ["quantize"]


def quantize(source: Path, images: np.ndarray, path: Path) -> None:
    """Write an int8 version of a float32 ONNX file.

    Args:
        source: file of --core grid_sample with one input.
        images: real ones, `(N, 3, H, W)` float32, normalised; some hundred are enough.
        path: file to write.

    Raises:
        UserError: nothing in the file can be quantised.
    """
    quantize_onnx(source, images[:, None], path, symmetric=True)
