"""OpenVINO's own format, an `.xml` and a `.bin` file, converted from the ONNX graph.

`load` sets float32: by default OpenVINO may compute in bfloat16 on processors that support it.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import openvino
from openvino import opset8
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from internimage.errors import UserError

from . import onnx as onnx_format
from .formats import Runtime
from .progress import phase
from .spec import Exportable

__all__ = ["load", "write"]


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write `path` and its weights beside it, as float16 if `half` (OpenVINO still computes in float32).

    The metadata become the section `internimage` of the file's runtime information.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "model.onnx"
        onnx_format.write(exportable, source, core=core, half=False)
        with phase("Converting for OpenVINO"):
            convert(source, path, half=half)


def convert(source: Path, path: Path, *, half: bool = False) -> None:
    """Convert a float32 or int8 ONNX file to `path` and its weights. Raises `UserError` if OpenVINO cannot read it."""
    core = openvino.Core()
    core.add_extension(ConversionExtension("DeformConv", "", _deform_conv))
    try:
        model = core.read_model(source)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read {source}: {_first_line(error)}") from None
    for item in onnx.load(source, load_external_data=False).metadata_props:
        model.set_rt_info(item.value, ["internimage", item.key])
    openvino.save_model(model, path, compress_to_fp16=half)


def _deform_conv(node: NodeContext) -> list:
    """ONNX's DeformConv, which OpenVINO supports but its ONNX reader does not (2026.4)."""
    data, weight, offsets, bias, mask = (node.get_input(index) for index in range(5))
    pads = node.get_attribute("pads")
    result = opset8.deformable_convolution(
        data,
        offsets,
        weight,
        node.get_attribute("strides"),
        pads[:2],
        pads[2:],
        node.get_attribute("dilations"),
        mask,
        group=node.get_attribute("group"),
        deformable_group=node.get_attribute("offset_group"),
        bilinear_interpolation_pad=True,  # samples fade to zero over the last pixel, as in DeformConv
    )
    shape = opset8.constant([1, -1, 1, 1], dtype=np.int64)
    return [opset8.add(result, opset8.reshape(bias, shape, special_zero=False)).output(0)]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def load(path: Path, *, threads: int = 1) -> Runtime:
    """Load a file on OpenVINO's CPU device, in float32.

    A file with free sizes runs faster if you fix the size when loading: `core.read_model`, `model.reshape`.

    Raises:
        UserError: OpenVINO cannot read the file.
    """
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        model = openvino.Core().compile_model(path, "CPU", config)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read {path}: {_first_line(error)}") from None

    def run(images: np.ndarray) -> list[np.ndarray]:
        results = model(images)
        return [results[output] for output in model.outputs]

    return run
