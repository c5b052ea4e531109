"""Building and running TensorRT engines, with a fake of its three Python libraries. Nothing here runs on a GPU."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from internimage.errors import UserError
from internimage.export import export, tensorrt
from internimage.export.tensorrt import build, load
from internimage.export.tensorrt_engine import description_path, library

ROOT = Path(__file__).parents[2]
SIZES = {"batch": (1, 1, 4), "height": (32, 64, 64), "width": (32, 64, 96)}


@pytest.fixture
def model(tmp_path):
    return fake_tensorrt.write_onnx(tmp_path / "model.onnx", -1, 3, -1, -1, task="x")


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# Which library


@pytest.mark.parametrize("name", fake_tensorrt.VERSIONS)
def test_each_supported_library_is_found(use, name):
    assert use(name) is library()


def test_tensorrt_comes_before_tensorrt_for_rtx_unless_asked_for(use):
    use("tensorrt_rtx 1", "tensorrt 11")
    assert library().__name__ == "tensorrt"
    assert library("tensorrt_rtx").__name__ == "tensorrt_rtx"


def test_what_is_no_tensorrt_or_another_version_is_refused(use, monkeypatch):
    use()
    with pytest.raises(UserError, match="TensorRT is not installed: pip install tensorrt .*tensorrt-rtx-cu13"):
        library()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))  # what importing the folder gives
    with pytest.raises(UserError, match="not installed"):
        library()
    use("tensorrt 10").__version__ = "8.6.1"
    with pytest.raises(UserError, match="tensorrt 8.6.1 is installed; this code is for version 10 and 11"):
        library()


# Building and running


@pytest.mark.parametrize("name", fake_tensorrt.VERSIONS)
def test_an_engine_has_the_sizes_asked_for_and_the_files_types_and_runs_them(use, model, tmp_path, name):
    trt = use(name)
    path = tmp_path / "new" / "model.engine"
    about = build(model, path, **SIZES)
    assert about["inputs"] == {"images": ((1, 3, 32, 32), (1, 3, 64, 64), (4, 3, 64, 96))}
    assert about["outputs"] == ["sampled", "logits", "label"] and about["metadata"] == {"task": "x"}
    assert (about["library"], about["version"]) == (trt.__name__, trt.__version__)
    stored = json.loads(path.read_bytes())
    assert stored["strong"] and stored["flags"] == []  # and no TF32
    engine, session = load(path), onnxruntime.InferenceSession(model)
    for shape in ((1, 3, 64, 64), (3, 3, 32, 96), (4, 3, 64, 64)):
        for actual, expected in zip(engine(images(*shape)), session.run(None, {"images": images(*shape)})):
            np.testing.assert_array_equal(actual, expected)
            assert actual.dtype == expected.dtype


@pytest.mark.parametrize(("opset", "mode"), [(20, "linear"), (20, "nearest"), (19, "bilinear")])
def test_an_engine_interpolates_as_the_file_says_even_if_the_parser_misreads_it(use, tmp_path, opset, mode):
    use("tensorrt 11", misreads=True)
    model = fake_tensorrt.write_onnx(tmp_path / "model.onnx", 1, 3, 8, 8, opset=opset, mode=mode)
    build(model, tmp_path / "m.engine")
    expected = onnxruntime.InferenceSession(model).run(None, {"images": images(1, 3, 8, 8)})
    np.testing.assert_array_equal(load(tmp_path / "m.engine")(images(1, 3, 8, 8))[0], expected[0])


class Sampler(nn.Module):
    """Samples a picture between its pixels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.linspace(-0.9, 0.8, 32).reshape(1, 4, 4, 2))

    def forward(self, x):
        return nn.functional.grid_sample(x, self.grid.expand(x.shape[0], -1, -1, -1), align_corners=False)


def test_the_export_format_checks_the_engine_and_says_if_it_differs(use, tmp_path, monkeypatch):
    use("tensorrt 11")
    samples = [torch.randn(1, 3, 64, 64), torch.randn(3, 3, 48, 80)]
    rows = export(Sampler(), tmp_path / "m.engine", samples, format="tensorrt", metadata={"task": "mine"})
    assert [row.relative < 1e-6 for row in rows] == [True, True] and (tmp_path / "m.onnx").is_file()
    about = json.loads(description_path(tmp_path / "m.engine").read_text())
    assert about["inputs"]["images"] == [[1, 3, 32, 32], [1, 3, 64, 64], [8, 3, 81, 81]]
    assert about["metadata"] == {"task": "mine"}

    def nearest(trt, network, model):
        for node in network._model.graph.node:
            if node.op_type == "GridSample":
                fake_tensorrt._set_mode(node, "NEAREST")

    monkeypatch.setattr(tensorrt, "_set_interpolation", nearest)
    with pytest.raises(UserError, match="results differ from PyTorch's"):
        export(Sampler(), tmp_path / "m.engine", samples, format="tensorrt")
    assert (tmp_path / "m.engine.failed").is_file()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "takes any height: give the sizes to build for"),
        ({"height": (64, 32, 96), "width": (64, 64, 64)}, "expected smallest <= usual <= largest"),
        ({"batch": (0, 1, 1), "height": (64, 64, 64), "width": (64, 64, 64)}, "expected smallest <= usual <= largest"),
    ],
)
def test_impossible_sizes_are_refused(use, model, tmp_path, options, complaint):
    use("tensorrt 11")
    with pytest.raises(UserError, match=complaint):
        build(model, tmp_path / "e.engine", **options)


def test_only_tensorrt_for_rtx_builds_without_a_gpu(use, model, tmp_path):
    use("tensorrt 11", gpu=False)
    with pytest.raises(UserError, match="needs an NVIDIA GPU, and torch sees none here"):
        build(model, tmp_path / "e.engine", **SIZES)
    use("tensorrt_rtx 1", gpu=False)
    assert build(model, tmp_path / "e.engine", **SIZES)["gpu"] is None


def test_plugins_are_registered_once_and_refused_where_there_are_no_plugin_layers(use, model, tmp_path):
    trt = use("tensorrt 11")
    plugin = tmp_path / "plugin.so"
    with pytest.raises(UserError, match="does not exist; build the plugin"):
        build(model, tmp_path / "e.engine", **SIZES, plugins=[plugin])
    plugin.touch()
    for _ in range(2):
        build(model, tmp_path / "e.engine", **SIZES, plugins=[plugin])
    assert [name for name in trt.loaded if name != "its own"] == [str(plugin)] and "its own" in trt.loaded
    use("tensorrt_rtx 1")
    with pytest.raises(UserError, match="has no plugin layers"):
        build(model, tmp_path / "e.engine", **SIZES, plugins=[plugin])


def test_images_that_an_engine_cannot_take_are_refused_with_the_reason(use, model, tmp_path):
    use("tensorrt 11")
    build(model, tmp_path / "e.engine", **SIZES)
    engine = load(tmp_path / "e.engine")
    for shape in ((5, 3, 64, 64), (1, 3, 64, 97), (3, 64, 64)):
        with pytest.raises(UserError, match=r"the engine was built for \[1, 3, 32, 32\] to \[4, 3, 64, 96\]"):
            engine(np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="TensorRT failed: .*Error Code 1"):
        engine(np.full((1, 3, 64, 64), np.nan, np.float32))


def test_engines_of_another_library_or_content_are_refused(use, model, tmp_path):
    use("tensorrt 10")
    path = tmp_path / "e.engine"
    build(model, path, **SIZES)
    use("tensorrt_rtx 1")
    with pytest.raises(UserError, match="tensorrt is not installed"):
        load(path)
    use("tensorrt 11")
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="11.4.0.106 cannot run .*built by tensorrt 10.16.* on fake GPU: .*magic tag"):
        load(path)
    description_path(path).write_text('{"library"')
    with pytest.raises(UserError, match="e.engine.json is damaged; build the engine again"):
        load(path)
    description_path(path).unlink()
    with pytest.raises(UserError, match="e.engine.json does not exist; build the engine"):
        load(path)


# The scripts


def script(name: str) -> ModuleType:
    """A script of tensorrt/, which must not be imported by that name: it may be NVIDIA's."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_{name}", ROOT / "tensorrt" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_script_reads_ranges_and_writes_the_engine_beside_the_file(use, model, capsys):
    use("tensorrt 11")
    script("build").main([str(model), "--batch", "1", "2", "4", "--size", "64", "--width", "64", "64", "96"])
    about = json.loads(description_path(model.with_suffix(".engine")).read_text())
    assert about["inputs"]["images"] == [[1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 96]]
    assert "1x3x64x64, 2x3x64x64, 4x3x64x96" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["model.onnx", "--size", "64", "96"], "takes one number, or smallest, usual and largest"),
        (["model.onnx", "--library", "tensorrt_rtx"], "tensorrt_rtx is not installed"),
        (["none.onnx"], "does not exist; export a model"),
        (["text.onnx"], "is not an ONNX model"),
        (["plugin.onnx", "--size", "64"], "no importer or plugin for this node (node 3); export without --core custom"),
    ],
)
def test_mistakes_on_the_build_scripts_command_line_end_in_one_line(
    use, model, tmp_path, capsys, monkeypatch, arguments, complaint
):
    use("tensorrt 10")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("This may be taken for a model without nodes.")
    proto = fake_tensorrt.onnx.load(model)
    proto.graph.node[0].domain = "ops_dcnv3"
    fake_tensorrt.onnx.save(proto, tmp_path / "plugin.onnx")
    with pytest.raises(SystemExit) as exit:
        script("build").main(arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and complaint in error


def test_the_inference_script_prepares_the_picture_as_the_metadata_say_and_names_the_classes(use, tmp_path, capsys):
    use("tensorrt 11")
    words = {"task": "classification", "resize": "stretch", "interpolation": "bilinear", "size": "[64, 64]"}
    words |= {"mean": "[0.5, 0.5, 0.5]", "std": "[0.1, 0.1, 0.1]", "class_names": '["cat", "dog", "fish"]'}
    build(fake_tensorrt.write_onnx(tmp_path / "model.onnx", 1, 3, 32, 48, **words), tmp_path / "m.engine")
    Image.new("RGB", (100, 80), (10, 250, 120)).save(tmp_path / "photo.png")
    infer = script("infer").main
    infer([str(tmp_path / "m.engine"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "drawn.png")])
    assert capsys.readouterr().out.split()[1::2][:3] == ["dog", "fish", "cat"]
    assert Image.open(tmp_path / "drawn.png").size == (300, 240)  # enlarged, to have room for the names
    with pytest.raises(SystemExit):
        infer([str(tmp_path / "m.engine"), str(tmp_path / "none.png")])
    assert "none.png is not a readable image" in capsys.readouterr().err
