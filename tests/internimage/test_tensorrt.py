"""Building and running TensorRT engines, with a fake of its three Python libraries. Nothing here runs on a GPU."""

import json
import sys
from types import ModuleType

import fake_tensorrt
import numpy as np
import pytest
import torch
from torch import nn

from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export import tensorrt
from internimage.export.exportable import Exportable
from internimage.export.tensorrt import BuildOptions, build, load
from internimage.export.tensorrt_library import library

VERSIONS = ("tensorrt 10", "tensorrt 11", "tensorrt_rtx 1")
ANY_SIZE = [-1, 3, -1, -1]
SIZES = BuildOptions(batch=(1, 1, 4), height=(32, 64, 64), width=(32, 64, 96))


@pytest.fixture
def model(tmp_path):
    return fake_tensorrt.write_onnx(tmp_path / "model.onnx", images=ANY_SIZE)


# ---- which library --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_each_supported_library_is_found(use, name):
    assert use(name) is library()


def test_tensorrt_comes_before_tensorrt_for_rtx_unless_asked_for(use):
    use("tensorrt_rtx 1", "tensorrt 11")
    assert library().__name__ == "tensorrt"
    assert library("tensorrt_rtx").__name__ == "tensorrt_rtx"


def test_without_tensorrt_one_line_says_what_to_install(use):
    use()
    with pytest.raises(UserError, match="TensorRT is not installed: pip install tensorrt .*tensorrt-rtx-cu13"):
        library()


def test_the_repositorys_own_folder_is_not_taken_for_tensorrt(use, monkeypatch):
    use()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))  # what importing the folder gives
    with pytest.raises(UserError, match="not installed"):
        library()


def test_an_unknown_version_is_refused(use):
    use("tensorrt 10").__version__ = "8.6.1"
    with pytest.raises(UserError, match="tensorrt 8.6.1 is installed; this code is for version 10 and 11"):
        library()


# ---- building -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_an_engine_has_the_sizes_asked_for_and_the_types_of_the_file(use, model, tmp_path, name):
    trt = use(name)
    path = tmp_path / "new" / "model.engine"
    about = build(model, path, BuildOptions((1, 2, 4), (32, 64, 64), (32, 64, 96), metadata={"task": "x"}))
    shapes = [[1, 3, 32, 32], [2, 3, 64, 64], [4, 3, 64, 96]]
    engine = json.loads(path.read_bytes())
    assert engine["profile"] == {"images": shapes}
    assert engine["strong"] and engine["flags"] == []  # and no TF32
    assert about["inputs"] == {"images": shapes}
    assert about["outputs"] == ["sum", "positive"]
    assert (about["library"], about["version"]) == (trt.__name__, trt.__version__)
    assert about["metadata"] == {"task": "x"}


@pytest.mark.parametrize("name", VERSIONS)
def test_a_file_of_one_size_needs_no_sizes(use, tmp_path, name):
    use(name)
    model = fake_tensorrt.write_onnx(tmp_path / "model.onnx", images=[1, 3, 48, 48])
    assert build(model, tmp_path / "e.engine", BuildOptions())["inputs"] == {"images": [[1, 3, 48, 48]] * 3}


def test_workspace_tf32_and_timing_cache_reach_the_builder(use, model, tmp_path):
    use("tensorrt 11")
    cache = tmp_path / "timings"
    options = BuildOptions(
        height=(64,) * 3, width=(64,) * 3, workspace=2**28, tf32=True, timing_cache=cache, plugins=()
    )
    build(model, tmp_path / "e.engine", options)
    build(model, tmp_path / "e.engine", options)
    engine = json.loads((tmp_path / "e.engine").read_bytes())
    assert engine["pools"] == {"WORKSPACE": 2**28}
    assert engine["flags"] == ["TF32"]
    assert cache.read_bytes() == b"timed;timed;"
    cache.write_bytes(b"other")
    with pytest.raises(UserError, match="another TensorRT version or GPU; delete it"):
        build(model, tmp_path / "e.engine", options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (BuildOptions(), "takes any height: say for which sizes to build"),
        (BuildOptions((1, 1, 1), (64, 32, 96), (64, 64, 64)), "expected smallest <= usual <= largest"),
        (BuildOptions((0, 1, 1), (64, 64, 64), (64, 64, 64)), "expected smallest <= usual <= largest"),
    ],
)
def test_impossible_sizes_are_refused(use, model, tmp_path, options, complaint):
    use("tensorrt 11")
    with pytest.raises(UserError, match=complaint):
        build(model, tmp_path / "e.engine", options)


def test_what_is_no_onnx_file_or_not_there_is_said_in_one_line(use, tmp_path):
    use("tensorrt 11")
    with pytest.raises(UserError, match="does not exist; export a model"):
        build(tmp_path / "none.onnx", tmp_path / "e.engine", SIZES)
    (tmp_path / "text.onnx").write_text("no JSON")
    with pytest.raises(UserError, match=r"cannot read .*Failed to parse the ONNX model. \(node 3\)"):
        build(tmp_path / "text.onnx", tmp_path / "e.engine", SIZES)


def test_only_tensorrt_for_rtx_builds_without_a_gpu(use, model, tmp_path):
    use("tensorrt 11", gpu=False)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and torch sees none here"):
        build(model, tmp_path / "e.engine", SIZES)
    use("tensorrt_rtx 1", gpu=False)
    assert build(model, tmp_path / "e.engine", SIZES)["gpu"] is None


def test_plugins_are_registered_once_and_refused_where_there_are_no_plugin_layers(use, model, tmp_path):
    trt = use("tensorrt 11")
    plugin = tmp_path / "plugin.so"
    options = BuildOptions((1, 1, 1), (64,) * 3, (64,) * 3, plugins=[plugin])
    with pytest.raises(UserError, match="does not exist; build the plugin"):
        build(model, tmp_path / "e.engine", options)
    plugin.touch()
    build(model, tmp_path / "e.engine", options)
    build(model, tmp_path / "e.engine", options)
    assert [call for call in trt.calls if call != "own plugins"] == [str(plugin)]
    assert "own plugins" in trt.calls
    use("tensorrt_rtx 1")
    with pytest.raises(UserError, match="has no plugin layers"):
        build(model, tmp_path / "e.engine", options)


# ---- running --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERSIONS)
def test_an_engine_runs_any_batch_and_size_it_was_built_for(use, model, tmp_path, name):
    use(name)
    build(model, tmp_path / "e.engine", SIZES)
    engine = load(tmp_path / "e.engine", threads=1)
    for shape in ((1, 3, 64, 64), (3, 3, 32, 96), (4, 3, 64, 64), (1, 3, 32, 32)):
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        images[::2] += 1
        images[1::2] -= 1
        total, positive = engine(images)
        np.testing.assert_allclose(total, images.sum((1, 2, 3)), rtol=1e-4)
        assert positive.tolist() == list(range(0, shape[0], 2))
        assert positive.dtype == np.int64


def test_outputs_without_elements_have_their_shape(use, model, tmp_path):
    use("tensorrt 11")
    build(model, tmp_path / "e.engine", SIZES)
    assert load(tmp_path / "e.engine")(-np.ones((2, 3, 64, 64), np.float32))[1].shape == (0,)


def test_images_outside_of_the_engines_sizes_are_refused(use, model, tmp_path):
    use("tensorrt 11")
    build(model, tmp_path / "e.engine", SIZES)
    engine = load(tmp_path / "e.engine")
    for shape in ((5, 3, 64, 64), (1, 3, 64, 97), (3, 64, 64)):
        with pytest.raises(UserError, match=r"the engine was built for \(1, 3, 32, 32\) to \(4, 3, 64, 96\)"):
            engine(np.zeros(shape, np.float32))


def test_a_failed_inference_gives_tensorrts_reason(use, model, tmp_path):
    use("tensorrt 11")
    build(model, tmp_path / "e.engine", SIZES)
    with pytest.raises(UserError, match="TensorRT failed: .*Error Code 1"):
        load(tmp_path / "e.engine")(np.full((1, 3, 64, 64), np.nan, np.float32))


def test_engines_of_another_version_library_or_content_are_refused(use, model, tmp_path):
    use("tensorrt 10")
    path = tmp_path / "e.engine"
    build(model, path, SIZES)
    use("tensorrt 11")
    with pytest.raises(UserError, match="built by tensorrt 10.16.1.11, and 11.4.0.106 is installed; build it again"):
        load(path)
    use("tensorrt_rtx 1")
    with pytest.raises(UserError, match="tensorrt is not installed"):
        load(path)
    use("tensorrt 10")
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot load .*fake GPU.*magic tag"):
        load(path)
    (tmp_path / "e.engine.json").unlink()
    with pytest.raises(UserError, match="keep it beside the engine"):
        load(path)
    path.unlink()
    with pytest.raises(UserError, match="does not exist; build it"):
        load(path)


def test_the_export_format_writes_an_engine_for_all_its_samples_and_the_onnx_file_beside_it(use, tmp_path, monkeypatch):
    use("tensorrt 11")
    written = []

    def write_onnx(exportable, path, *, core, half):
        written.append((path.name, core, half))
        fake_tensorrt.write_onnx(path, images=ANY_SIZE)

    monkeypatch.setattr(onnx_format, "write", write_onnx)
    samples = [torch.zeros(1, 3, 64, 64), torch.zeros(3, 3, 96, 32), torch.zeros(1, 3, 64, 128)]
    exportable = Exportable(nn.Identity(), ("sum",), (64, 64), {"task": "classification"}, samples)
    tensorrt.write(exportable, tmp_path / "m.engine", core="grid_sample", half=True)
    assert written == [("m.onnx", "grid_sample", True)]
    engine = load(tmp_path / "m.engine")
    assert engine.about["inputs"]["images"] == [[1, 3, 64, 32], [1, 3, 64, 64], [8, 3, 96, 128]]
    assert engine.about["metadata"] == {"task": "classification"}
    for images in samples:
        engine(images.numpy())
