"""The real TensorRT for RTX, where it is installed: it parses and builds without a GPU. Nothing here runs an engine."""

from types import ModuleType

import fake_tensorrt
import numpy as np
import onnx
import pytest
import tensorrt_api
import torch

from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export.quantize import quantize_onnx
from internimage.export.tensorrt import build
from internimage.export.tensorrt_engine import library, require_gpu


def installed_rtx() -> ModuleType | None:
    try:
        return library("tensorrt_rtx")
    except UserError:
        return None


needs_rtx = pytest.mark.skipif(installed_rtx() is None, reason="TensorRT for RTX is not installed")


@needs_rtx
def test_the_stored_declarations_are_those_of_the_installed_library():
    real = tensorrt_api.read(installed_rtx())
    for name, stored in fake_tensorrt.CALLS.items():
        assert real[name] == stored if isinstance(stored, str) else set(stored) <= set(real[name]), name


@pytest.fixture(scope="module")
def int8(small_onnx, tmp_path_factory):
    """A symmetric int8 file, from the float32 file of a small classifier."""
    path, generator = tmp_path_factory.mktemp("int8") / "int8.onnx", np.random.default_rng(0)
    quantize_onnx(small_onnx, generator.standard_normal((4, 1, 3, 64, 64), np.float32), path, symmetric=True)
    return path


def test_int8_files_have_symmetric_types_and_compute_nearly_the_same(small_onnx, int8):
    graph = onnx.load(int8).graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) > 20
    for node in nodes:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    images = np.random.default_rng(1).standard_normal((1, 3, 64, 64), np.float32)
    expected, actual = onnx_format.load(small_onnx)(images)[0], onnx_format.load(int8)(images)[0]
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()


@pytest.fixture(scope="module")
def half(small, tmp_path_factory):
    """A float16 file of one size."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    onnx_format.write(small(1, 3, 64, 64), path, half=True)
    return path


@needs_rtx
@pytest.mark.parametrize("name", ["int8", "half"])
def test_tensorrt_for_rtx_builds_engines_from_our_files(name, request, tmp_path):
    model, path = request.getfixturevalue(name), tmp_path / "m.engine"
    about = build(model, path, batch=(1, 1, 2), height=(64, 64, 96), width=(64, 64, 96), trt=installed_rtx())
    assert about["outputs"] == ["logits"]
    assert about["inputs"]["images"][2] == ((1, 3, 64, 64) if name == "half" else (2, 3, 96, 96))
    assert path.stat().st_size > 2**19


@needs_rtx
def test_the_real_layer_takes_the_interpolation_that_the_file_says(tmp_path):
    trt = installed_rtx()
    model = fake_tensorrt.write_onnx(tmp_path / "model.onnx", 1, 3, 8, 8, opset=20, mode="linear")
    assert build(model, tmp_path / "m.engine", trt=trt)["outputs"] == ["sampled", "logits", "label"]


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_for_rtx_says_that_it_cannot_run_here():
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        require_gpu("running")
