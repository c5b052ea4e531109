"""A fake of TensorRT's three Python libraries in place of whatever is installed, for the tests of tensorrt."""

import contextlib
import sys
from types import ModuleType

import fake_tensorrt
import pytest
import torch

from internimage.export import tensorrt_engine, tensorrt_library


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
        monkeypatch.setattr(torch.cuda, "Stream", fake_tensorrt.Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        return next((module for module in modules.values() if module), None)

    return install
