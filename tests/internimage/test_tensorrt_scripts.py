"""The scripts of tensorrt/, with a fake of TensorRT's libraries. Nothing here runs on a GPU."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from internimage import InternImage
from internimage.export import onnx as onnx_format
from internimage.export import tensorrt_engine, tensorrt_int8

ROOT = Path(__file__).parents[2]
ANY_SIZE = [-1, 3, -1, -1]


@pytest.fixture
def model(tmp_path):
    return fake_tensorrt.write_onnx(tmp_path / "model.onnx", images=ANY_SIZE)


def script(name: str) -> ModuleType:
    """A script of tensorrt/, which must not be imported by that name: it may be NVIDIA's."""
    spec = importlib.util.spec_from_file_location(f"tensorrt_{name}", ROOT / "tensorrt" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
            assert isinstance(stream, fake_tensorrt.Stream)
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
