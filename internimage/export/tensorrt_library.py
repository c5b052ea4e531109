"""The TensorRT library that is installed: which one, what it can do, its messages and plugins.

Three libraries share one Python API: `tensorrt` 10 and 11, and `tensorrt_rtx` 1 (TensorRT for RTX), which also builds
where there is no GPU. This folder's `tensorrt.py` is the export format, not the library.
"""

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from internimage.errors import UserError

__all__ = ["is_rtx", "library", "load_plugins", "logger", "require_gpu"]

LIBRARIES = {"tensorrt": (10, 11), "tensorrt_rtx": (1,)}  # the major versions whose API is known here


def library(name: str | None = None) -> ModuleType:
    """Return the TensorRT module of that name, or the first one installed of `tensorrt` and `tensorrt_rtx`.

    Raises:
        UserError: it is not installed, cannot be loaded, or has a version that is not supported.
    """
    for candidate in [name] if name else LIBRARIES:
        try:
            module = importlib.import_module(candidate)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError) as error:
            raise UserError(f"{candidate} is installed but cannot be loaded: {error}") from None
        if not hasattr(module, "Logger"):  # this repository's folder tensorrt/, seen as an empty package
            continue
        supported = LIBRARIES[candidate]
        if int(module.__version__.split(".")[0]) not in supported:
            versions = " and ".join(map(str, supported))
            raise UserError(f"{candidate} {module.__version__} is installed; this code is for version {versions}")
        return module
    missing = name or "TensorRT"
    raise UserError(
        f"{missing} is not installed: pip install tensorrt (a GPU machine), or pip install tensorrt-rtx-cu13 "
        "(GeForce and RTX GPUs; builds without a GPU too)"
    )


def is_rtx(trt: ModuleType) -> bool:
    """Whether the library is TensorRT for RTX."""
    return trt.__name__.startswith("tensorrt_rtx")


@functools.cache
def logger(trt: ModuleType):
    """The library's one logger: errors are kept for the message to the user, the rest is dropped."""
    severity = trt.ILogger.Severity

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, level, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.messages.append(message)

        def reason(self) -> str:
            """The first line of the first error that says more than where it was seen, and forget them all."""
            messages, self.messages = self.messages, []
            lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
            telling = [line for line in lines if "Error" in line or "ssertion" in line] or lines
            return telling[0][:300] if telling else "TensorRT gave no reason"

    return Errors()


def require_gpu(purpose: str) -> None:
    """Raise `UserError` where torch sees no GPU."""
    if not torch.cuda.is_available():
        raise UserError(
            f"{purpose} needs an NVIDIA GPU, and torch sees none here; export --format onnx, and run "
            "tensorrt/build.py on the machine that has it"
        )


def load_plugins(trt: ModuleType, paths: Sequence[Path]) -> None:
    """Register TensorRT's own plugins (RoiAlign is one), and those of these libraries, such as that of tensorrt/plugin.

    Raises:
        UserError: a file is missing or cannot be loaded, or the library has no plugin layers.
    """
    if is_rtx(trt):
        if paths:
            raise UserError("TensorRT for RTX has no plugin layers: export without --core custom, or use tensorrt")
        return
    trt.init_libnvinfer_plugins(logger(trt), "")
    for path in paths:
        _load_plugin(trt, path.resolve())


@functools.cache  # a second time the registry would find the names taken
def _load_plugin(trt: ModuleType, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; build the plugin as tensorrt/plugin/CMakeLists.txt says")
    logger(trt).messages.clear()
    if trt.get_plugin_registry().load_library(str(path)) is None:
        raise UserError(f"TensorRT cannot load {path}: {logger(trt).reason()}")
