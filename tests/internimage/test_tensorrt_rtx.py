"""The real TensorRT for RTX, where it is installed: it parses and builds without a GPU. Nothing here runs an engine."""

import functools
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np
import onnx
import pytest
import tensorrt_api
import torch

from internimage import InternImage
from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export import tensorrt_int8, tensorrt_library
from internimage.export.exportable import Exportable, Logits
from internimage.export.tensorrt import BuildOptions, build
from internimage.export.tensorrt_library import library

SIZES = BuildOptions(batch=(1, 1, 4), height=(32, 64, 64), width=(32, 64, 96))


def installed_rtx() -> ModuleType | None:
    try:
        return library("tensorrt_rtx")
    except UserError:
        return None


needs_rtx = pytest.mark.skipif(installed_rtx() is None, reason="TensorRT for RTX is not installed")


@needs_rtx
def test_the_stored_declarations_are_those_of_the_installed_library():
    real, stored = tensorrt_api.read(installed_rtx()), fake_tensorrt.API["tensorrt_rtx 1"]
    if real["__version__"] != stored["__version__"]:
        pytest.skip(f"version {real['__version__']} is installed, the declarations are of {stored['__version__']}")
    assert real == stored


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory):
    """Our exporter's files of a small classifier: path by (half, dynamic)."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    model = Logits(InternImage(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8], num_classes=5).eval())

    @functools.cache
    def export(half: bool, dynamic: bool, core: str = "grid_sample") -> Path:
        path = folder / f"{half}{dynamic}{core}.onnx"
        exportable = Exportable(model, ("logits",), (64, 64), {}, [torch.zeros(1, 3, 64, 64)], dynamic=dynamic)
        onnx_format.write(exportable, path, core=core, half=half)
        return path

    return export


def test_half_files_of_the_custom_core_have_no_own_node_but_the_plugins(small_onnx):
    nodes = onnx.load(small_onnx(True, False, "custom")).graph.node
    assert [node.op_type for node in nodes if node.domain == "ops_dcnv3"] == ["DCNv3"] * 4


def test_int8_files_have_symmetric_types_and_compute_nearly_the_same(small_onnx, tmp_path):
    images = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    tensorrt_int8.quantize(small_onnx(False, False), images, tmp_path / "int8.onnx")
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) > 20
    for node in nodes:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    expected = onnx_format.load(small_onnx(False, False))(images[:1])[0]
    actual = onnx_format.load(tmp_path / "int8.onnx")(images[:1])[0]
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()


@needs_rtx
@pytest.mark.parametrize(("half", "dynamic"), [(False, False), (True, True)], ids=["float32", "float16, any size"])
def test_tensorrt_for_rtx_builds_an_engine_from_our_onnx_file(small_onnx, tmp_path, half, dynamic):
    options = BuildOptions((1, 1, 2), (64, 64, 96), (64, 64, 96), workspace=2**30)
    about = build(small_onnx(half, dynamic), tmp_path / "m.engine", options, installed_rtx())
    assert about["outputs"] == ["logits"]
    assert about["inputs"]["images"][2] == ([2, 3, 96, 96] if dynamic else [1, 3, 64, 64])
    assert (tmp_path / "m.engine").stat().st_size > 2**20


@needs_rtx
def test_tensorrt_for_rtx_builds_an_engine_from_our_int8_file(small_onnx, tmp_path):
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    tensorrt_int8.quantize(small_onnx(False, False), images, tmp_path / "int8.onnx")
    build(tmp_path / "int8.onnx", tmp_path / "m.engine", BuildOptions(), installed_rtx())
    assert (tmp_path / "m.engine").stat().st_size > 2**20


@needs_rtx
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_for_rtx_says_why_it_cannot_parse_and_that_it_cannot_run_here(tmp_path):
    trt = installed_rtx()
    (tmp_path / "text.onnx").write_text("This is taken for a model without nodes.")
    with pytest.raises(UserError, match="is not an ONNX model"):
        build(tmp_path / "text.onnx", tmp_path / "e.engine", SIZES, trt)
    (tmp_path / "bytes.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="TensorRT cannot read .*ONNX model"):
        build(tmp_path / "bytes.onnx", tmp_path / "e.engine", SIZES, trt)
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        tensorrt_library.require_gpu("running")
