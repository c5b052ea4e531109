"""The detectors' own operators in ONNX; `onnx.py` gives these to PyTorch's exporter."""

import torch
from onnxscript import opset20 as op

__all__ = ["translations"]


def _suppress(boxes, scores, iou: float, most: int):
    """`internimage::suppress` as NonMaxSuppression, whose list of (image, class, box) becomes ones in a tensor."""
    kept = op.NonMaxSuppression(boxes, scores, most, iou, 0.0)
    zeros = op.Mul(scores, 0.0)
    ones = op.Expand(1.0, op.Slice(op.Shape(kept), [0], [1]))
    return op.ScatterND(zeros, kept, ones)


def translations() -> dict:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    return {torch.ops.internimage.suppress.default: _suppress}
