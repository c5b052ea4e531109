"""Run TensorRT engines with the installed library: `tensorrt` 10 or 11, or `tensorrt_rtx` 1.

They share one Python API; TensorRT for RTX also builds without a GPU. State: see `tensorrt.py`.
"""

import functools
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from internimage.errors import UserError

__all__ = ["Engine", "description_path", "gpu_name", "is_rtx", "library", "load_plugins", "logger", "require_gpu"]

DEVICE = "cuda"
LIBRARIES = {"tensorrt": (10, 11), "tensorrt_rtx": (1,)}  # the supported major versions


def library(name: str | None = None) -> ModuleType:
    """Return the TensorRT module of that name, or the first one installed of `tensorrt` and `tensorrt_rtx`.

    Raises:
        UserError: it is not installed, cannot be loaded, or its version is not supported.
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
        if int(module.__version__.split(".")[0]) not in LIBRARIES[candidate]:
            versions = " and ".join(map(str, LIBRARIES[candidate]))
            raise UserError(f"{candidate} {module.__version__} is installed; this code is for version {versions}")
        return module
    raise UserError(
        f"{name or 'TensorRT'} is not installed: pip install tensorrt (a GPU machine), or pip install "
        "tensorrt-rtx-cu13 (GeForce and RTX GPUs; builds without a GPU too)"
    )


def is_rtx(trt: ModuleType) -> bool:
    """Whether the library is TensorRT for RTX."""
    return trt.__name__.startswith("tensorrt_rtx")


def gpu_name() -> str | None:
    """Name of the GPU that torch sees, if any."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def require_gpu(purpose: str) -> None:
    """Raise `UserError` if torch sees no GPU."""
    if gpu_name() is None:
        raise UserError(
            f"{purpose} needs an NVIDIA GPU, and torch sees none here; export --format onnx, and run "
            "tensorrt/build.py on the machine with the GPU"
        )


@functools.cache
def logger(trt: ModuleType):
    """The library's one logger: it stores errors for the message to the user and drops the rest."""
    severity = trt.ILogger.Severity

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, level, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.messages.append(message)

        def reason(self) -> str:
            """The first informative line of the stored errors; clears them."""
            messages, self.messages = self.messages, []
            lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
            telling = [line for line in lines if "Error" in line or "ssertion" in line] or lines
            return telling[0][:300] if telling else "TensorRT gave no reason"

    return Errors()


def load_plugins(trt: ModuleType, paths: Sequence[Path]) -> None:
    """Register TensorRT's own plugins, such as RoiAlign, and those in `paths`, such as that of tensorrt/plugin.

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


@functools.cache  # the registry rejects a second registration
def _load_plugin(trt: ModuleType, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; build the plugin as tensorrt/plugin/CMakeLists.txt says")
    if trt.get_plugin_registry().load_library(str(path)) is None:
        raise UserError(f"TensorRT cannot load {path}: {logger(trt).reason()}")


def description_path(engine_path: Path) -> Path:
    """The file that describes an engine: library, version, GPU, input ranges, outputs, metadata."""
    return engine_path.with_name(engine_path.name + ".json")


class Engine:
    """An engine on the GPU; a `formats.Runtime`. Raises `UserError` without a GPU, or for another library or GPU."""

    def __init__(self, path: Path, *, plugins: Sequence[Path] = ()) -> None:
        for file in (path, description_path(path)):
            if not file.is_file():
                raise UserError(f"{file} does not exist; build the engine with tensorrt/build.py")
        try:
            self.about = json.loads(description_path(path).read_text())
        except ValueError:
            raise UserError(f"{description_path(path)} is damaged; build the engine again") from None
        trt = library(self.about["library"])
        require_gpu("running an engine")
        load_plugins(trt, plugins)
        self.log = logger(trt)
        self.log.messages.clear()
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        self.context = self.engine and self.engine.create_execution_context()
        if self.context is None:
            built = f"{self.about['library']} {self.about['version']} on {self.about['gpu']}"
            raise UserError(f"TensorRT {trt.__version__} cannot run {path}, built by {built}: {self.log.reason()}")
        ((self.input, self.ranges),) = self.about["inputs"].items()
        types = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32, trt.bool: torch.bool}
        self.outputs = {name: types[self.engine.get_tensor_dtype(name)] for name in self.about["outputs"]}
        self.stream = torch.cuda.Stream()

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Images `(N, 3, H, W)` float32, normalised, to the outputs in the model's order."""
        smallest, _, largest = self.ranges
        fits = (low <= size <= high for low, size, high in zip(smallest, images.shape, largest))
        if images.ndim != 4 or not all(fits):
            raise UserError(f"images of shape {images.shape}: the engine was built for {smallest} to {largest}")
        with torch.cuda.stream(self.stream):
            source = torch.from_numpy(np.ascontiguousarray(images, np.float32)).to(DEVICE)
            self.context.set_input_shape(self.input, images.shape)
            self.context.set_tensor_address(self.input, source.data_ptr())
            results = []
            for name, dtype in self.outputs.items():
                shape = tuple(self.context.get_tensor_shape(name))
                if -1 in shape:
                    raise UserError(f"the shape of the output {name} depends on values, which is not supported here")
                results.append(torch.empty(shape, dtype=dtype, device=DEVICE))
                self.context.set_tensor_address(name, results[-1].data_ptr())
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise UserError(f"TensorRT failed: {self.log.reason()}")
            self.stream.synchronize()
            return [result.cpu().numpy() for result in results]
