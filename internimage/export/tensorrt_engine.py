"""Running TensorRT engines: images in, arrays out. State: never run on a GPU; see `tensorrt.py`."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from internimage.errors import UserError

from .tensorrt_library import library, load_plugins, logger, require_gpu

__all__ = ["Engine", "description", "description_path"]

DEVICE = "cuda"
Shape = tuple[int, ...]


def description_path(engine_path: Path) -> Path:
    """The file beside an engine that says what it is."""
    return engine_path.with_name(engine_path.name + ".json")


def description(engine_path: Path) -> dict:
    """What is known of an engine file: library, version, GPU, input ranges, outputs, metadata."""
    path = description_path(engine_path)
    if not path.is_file():
        raise UserError(f"{path} is missing; keep it beside the engine, or build again")
    return json.loads(path.read_text())


class Engine:
    """An engine on the GPU; a `formats.Runtime`.

    Raises:
        UserError: no GPU, or the engine was built by another library, version or kind of GPU.
    """

    def __init__(self, path: Path, *, plugins: Sequence[Path] = ()) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist; build it with tensorrt/build.py")
        self.about = description(path)
        trt = library(self.about["library"])
        if trt.__version__ != self.about["version"]:
            built = f"{trt.__name__} {self.about['version']}"
            raise UserError(f"{path} was built by {built}, and {trt.__version__} is installed; build it again")
        require_gpu("running an engine")
        load_plugins(trt, plugins)
        self.trt, log = trt, logger(trt)
        log.messages.clear()
        self.runtime = trt.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise UserError(f"TensorRT cannot load {path} (built on {self.about['gpu']}): {log.reason()}")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise UserError(f"TensorRT cannot run {path}: {log.reason()}")
        self.dtypes = {
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
            trt.int64: torch.int64,
            trt.int32: torch.int32,
            trt.int8: torch.int8,
            trt.uint8: torch.uint8,
            trt.bool: torch.bool,
        }
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        (self.input,) = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.stream = torch.cuda.Stream()
        self.allocators: dict[str, object] = {}

    def check(self, shape: Shape) -> None:
        """Raise `UserError` if the engine was not built for images of this shape."""
        smallest, _, largest = (tuple(dims) for dims in self.engine.get_tensor_profile_shape(self.input, 0))
        if len(shape) != 4 or any(not low <= size <= high for low, size, high in zip(smallest, shape, largest)):
            raise UserError(f"images of shape {shape}: the engine was built for {smallest} to {largest}")

    def bind(self, images: Tensor) -> list[Tensor | None]:
        """Point the engine at `images` (on the GPU) and at new outputs; None for one whose shape depends on values."""
        self.context.set_input_shape(self.input, tuple(images.shape))
        self.context.set_tensor_address(self.input, images.data_ptr())
        results: list[Tensor | None] = []
        for name in self.outputs:
            dtype = self.dtypes[self.engine.get_tensor_dtype(name)]
            shape = tuple(self.context.get_tensor_shape(name))
            if -1 in shape:
                self.allocators[name] = _allocator(self.trt, dtype)
                self.context.set_output_allocator(name, self.allocators[name])
                results.append(None)
            else:
                result = torch.empty(shape, dtype=dtype, device=DEVICE)
                # Of an empty tensor torch has no address, TensorRT wants one.
                self.context.set_tensor_address(name, result.data_ptr() or images.data_ptr())
                results.append(result)
        return results

    def enqueue(self) -> None:
        """Start one inference of what is bound, on `self.stream`."""
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise UserError(f"TensorRT failed: {logger(self.trt).reason()}")

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Images `(N, 3, H, W)` float32, normalised, to the outputs in the order of the model."""
        self.check(images.shape)
        with torch.cuda.stream(self.stream):
            source = torch.from_numpy(np.ascontiguousarray(images, np.float32)).to(DEVICE)
            results = dict(zip(self.outputs, self.bind(source)))
            self.enqueue()
            self.stream.synchronize()
            for name, result in results.items():
                results[name] = self.allocators[name].tensor() if result is None else result
            return [results[name].cpu().numpy() for name in self.about["outputs"]]


def _allocator(trt: ModuleType, dtype: torch.dtype):
    """Memory for an output whose size is known only when it has been computed (boxes that survive suppression)."""

    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory = torch.empty(0, dtype=torch.uint8, device=DEVICE)
            self.shape: Shape = (0,)

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            if self.memory.numel() < max(size, 1):
                self.memory = torch.empty(max(size, 1), dtype=torch.uint8, device=DEVICE)
            return self.memory.data_ptr()

        def notify_shape(self, name: str, shape: Sequence[int]) -> None:
            self.shape = tuple(shape)

        def tensor(self) -> Tensor:
            count = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
            return self.memory[:count].view(dtype).view(self.shape)

    return Allocator()
