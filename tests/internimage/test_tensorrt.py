"""Building and running TensorRT engines, with a fake of its three Python libraries, and with the real TensorRT for RTX
where that is installed (it builds without a GPU). Nothing here runs an engine on a GPU."""

import contextlib
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np
import onnx
import pytest
import tensorrt_api
import torch
from PIL import Image
from torch import nn

from internimage import InternImage
from internimage.errors import UserError
from internimage.export import onnx as onnx_format
from internimage.export import tensorrt, tensorrt_engine, tensorrt_int8, tensorrt_library
from internimage.export.exportable import Exportable, Logits
from internimage.export.tensorrt import BuildOptions, build, load
from internimage.export.tensorrt_library import library

ROOT = Path(__file__).parents[2]
VERSIONS = ("tensorrt 10", "tensorrt 11", "tensorrt_rtx 1")
ANY_SIZE = [-1, 3, -1, -1]
SIZES = BuildOptions(batch=(1, 1, 4), height=(32, 64, 64), width=(32, 64, 96))


class Stream:
    cuda_stream = 7

    def synchronize(self) -> None:
        pass


@pytest.fixture
def use(monkeypatch):
    """Install fakes of the libraries named, in place of whatever is there, and a GPU whose memory is the CPU's."""

    def install(*names: str, gpu: bool = True) -> ModuleType:
        modules = {name: None for name in tensorrt_library.LIBRARIES}  # None: importing fails
        modules |= {name.split()[0]: fake_tensorrt.make(name) for name in names}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tensorrt_engine, "DEVICE", "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "fake GPU")
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        return next((module for module in modules.values() if module), None)

    return install


@pytest.fixture
def model(tmp_path):
    return fake_tensorrt.write_onnx(tmp_path / "model.onnx", images=ANY_SIZE)


def script(name: str) -> ModuleType:
    """A script of tensorrt/, which must not be imported by that name: it may be NVIDIA's."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_{name}", ROOT / "tensorrt" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# ---- scripts --------------------------------------------------------------------------------------------------------


def test_the_build_script_reads_ranges_and_writes_the_engine_beside_the_file(use, model, capsys):
    use("tensorrt 11")
    script("build").main([str(model), "--batch", "1", "2", "4", "--size", "64", "--width", "64", "64", "96"])
    about = tensorrt_engine.description(model.with_suffix(".engine"))
    assert about["inputs"]["images"] == [[1, 3, 64, 64], [2, 3, 64, 64], [4, 3, 64, 96]]
    assert "1x3x64x64, 2x3x64x64, 4x3x64x96" in capsys.readouterr().out


def test_the_build_script_quantises_first_if_asked_to(use, model, tmp_path, monkeypatch):
    use("tensorrt 11")
    np.save(tmp_path / "images.npy", np.ones((5, 3, 64, 64), np.float32))

    def quantize(source, images, path):
        assert (source, images.shape) == (model, (5, 3, 64, 64))
        fake_tensorrt.write_onnx(path, images=[1, 3, 32, 32])

    monkeypatch.setattr(tensorrt_int8, "quantize", quantize)
    script("build").main([str(model), "--int8", str(tmp_path / "images.npy")])
    assert tensorrt_engine.description(tmp_path / "model.int8.engine")["inputs"]["images"] == [[1, 3, 32, 32]] * 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "64", "96"], "takes one number, or smallest, usual and largest"),
        (["--size", "64", "--int8", "{folder}/none.npy"], "cannot be read as an array of images"),
        (["--size", "64", "--int8", "{folder}/bytes.npy"], r"holds uint8 \(2, 4\); expected float32"),
        (["--library", "tensorrt_rtx"], "tensorrt_rtx is not installed"),
    ],
)
def test_mistakes_on_the_build_scripts_command_line_end_in_one_line(use, model, tmp_path, capsys, arguments, complaint):
    use("tensorrt 10")
    np.save(tmp_path / "bytes.npy", np.zeros((2, 4), np.uint8))
    with pytest.raises(SystemExit) as exit:
        script("build").main([str(model), *(word.format(folder=tmp_path) for word in arguments)])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(complaint, error)


def test_the_inference_script_prepares_the_picture_as_the_metadata_say_and_names_the_classes(
    use, tmp_path, monkeypatch, capsys
):
    use("tensorrt 11")
    seen = []

    class Stub:
        """An engine for pictures of one size, whose logits favour the second class."""

        about = {
            "inputs": {"images": [[1, 3, 32, 48]] * 3},
            "outputs": ["logits"],
            "metadata": {
                "task": "classification",
                "size": "[64, 64]",
                "resize": "stretch",
                "interpolation": "bilinear",
                "mean": "[0.5, 0.5, 0.5]",
                "std": "[0.5, 0.5, 0.5]",
                "class_names": '["cat", "dog", "fish"]',
            },
        }

        def __init__(self, path, plugins):
            assert (path, plugins) == (tmp_path / "m.engine", [])

        def __call__(self, images):
            seen.append(images)
            return [np.array([[0.0, 9.0, 1.0]], np.float32)]

    infer = script("infer")
    monkeypatch.setattr(infer, "Engine", Stub)
    Image.new("RGB", (100, 80), (255, 0, 255)).save(tmp_path / "photo.png")
    infer.main([str(tmp_path / "m.engine"), str(tmp_path / "photo.png"), "--out", str(tmp_path / "drawn.png")])
    assert seen[0].shape == (1, 3, 32, 48)
    np.testing.assert_allclose(seen[0].mean((0, 2, 3)), [1, -1, 1], atol=1e-6)
    assert capsys.readouterr().out.split()[1] == "dog"
    assert Image.open(tmp_path / "drawn.png").size == (100, 80)
    Stub.about["metadata"] = {}
    with pytest.raises(SystemExit):
        infer.main([str(tmp_path / "m.engine"), str(tmp_path / "photo.png")])
    assert "no metadata of its model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        infer.main([str(tmp_path / "m.engine"), str(tmp_path / "none.png")])
    assert "none.png is not a readable image" in capsys.readouterr().err


def test_the_benchmark_exports_builds_and_reports_images_per_second_of_the_median(use, monkeypatch, capsys):
    use("tensorrt 11")
    times = iter([0.0, 4.0, 9.0, 13.0])  # milliseconds: 4, 5 and 4

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert isinstance(stream, Stream)
            self.time = next(times)

        def elapsed_time(self, other):
            return other.time - self.time

    def write(exportable, path, *, core, half):
        assert (core, half) == ("grid_sample", True)
        assert not exportable.dynamic
        fake_tensorrt.write_onnx(path, images=list(exportable.samples[0].shape))

    benchmark = script("benchmark")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(benchmark, "DEVICE", "cpu")
    monkeypatch.setattr(benchmark.internimage, "create_model", lambda name, pretrained: nn.Identity())
    monkeypatch.setattr(onnx_format, "write", write)
    benchmark.main(["--models", "t", "--half", "--repeats", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tensorrt 11.4.0.106, fake GPU, float16"
    assert lines[-1] == "| internimage_t_1k_224 | 224 | 250 | 156 |"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--repeats", "0"], "at least 1"), (["--plugin", "x.so"], "--plugin needs --half"), ([], "needs an NVIDIA GPU")],
)
def test_requests_that_the_benchmark_cannot_serve_end_in_one_line(use, capsys, arguments, complaint):
    use("tensorrt 11", gpu=False)
    with pytest.raises(SystemExit):
        script("benchmark").main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and complaint in error


def test_the_benchmarks_models_do_not_sample_in_order(use):
    benchmark = script("benchmark")
    model = benchmark.scattered(InternImage(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8], num_classes=2))
    offsets = [module.offset for name, module in model.named_modules() if name.endswith("dcn")]
    assert len(offsets) == 4
    assert all(layer.bias.std() > 0.3 and layer.weight.std() > 0.01 for layer in offsets)


def test_scripts_start_from_inside_their_folder():
    # One process for all: importing torch takes its time.
    code = (
        "import runpy, sys\n"
        "for name in ('build', 'infer', 'benchmark'):\n"
        "    sys.argv = [f'{name}.py', '--help']\n"
        "    try: runpy.run_path(f'{name}.py', run_name='__main__')\n"
        "    except SystemExit: pass"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tensorrt", capture_output=True, text=True)
    assert finished.stdout.count("usage:") == 3, finished.stderr


# ---- the real TensorRT for RTX --------------------------------------------------------------------------------------


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
