"""A small classifier and its ONNX file; a fake of TensorRT's three Python libraries in place of what is installed."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fake_tensorrt
import pytest
import torch

import golden
from internimage import InternImage
from internimage.export import onnx as onnx_format
from internimage.export import tensorrt_engine
from internimage.export.spec import Exportable, Logits, spread_sampling_points


@pytest.fixture(scope="session")
def small() -> Callable[..., Exportable]:
    """Makes a small classifier to export, traced with images of a shape; its sampling points are spread."""

    def build(*shape: int, dynamic: bool = False, **changes: object) -> Exportable:
        torch.manual_seed(0)
        model = InternImage(**{"channels": 32, "depths": [1, 1], "groups": [2, 4], "num_classes": 5, **changes}).eval()
        spread_sampling_points(model)
        metadata = {"task": "classification", "mean": "[0.5]"}
        return Exportable(Logits(model), golden.image(*shape, seed=0), ("logits",), metadata, dynamic)

    return build


@pytest.fixture(scope="session")
def small_onnx(small, tmp_path_factory) -> Path:
    """The ONNX file of `small` for any size."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    onnx_format.write(small(1, 3, 64, 64, dynamic=True), path)
    return path


@pytest.fixture
def use(monkeypatch):
    """Install fakes of the libraries named, in place of whatever is there, and a GPU whose memory is the CPU's."""

    def install(*names: str, gpu: bool = True, misreads: bool = False) -> ModuleType:
        modules = {name: None for name in tensorrt_engine.LIBRARIES}  # None: importing fails
        modules |= {name.split()[0]: fake_tensorrt.make(name, misreads=misreads) for name in names}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tensorrt_engine, "DEVICE", "cpu")
        monkeypatch.setattr(tensorrt_engine, "gpu_name", lambda: "fake GPU" if gpu else None)
        monkeypatch.setattr(torch.cuda, "Stream", fake_tensorrt.Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        return next((module for module in modules.values() if module), None)

    return install
