"""A stand-in for TensorRT's Python module, for tests: NOT TensorRT, and it optimises nothing.

It accepts exactly the calls that the real library of that version declares (`tests/data/tensorrt_api.json`): an
attribute, a flag or an argument that the version lacks, or an argument of another type, raises as it would there. Its
"ONNX file" is JSON with the inputs' shapes; its "engine" computes from images in memory, by address, as a GPU would:
`sum` `(N,)` of every image, and `positive` `(?,)`, the indices of the images whose sum is positive.
"""

import ctypes
import enum
import functools
import inspect
import json
import types
from pathlib import Path

import numpy as np

__all__ = ["Stream", "make", "write_onnx"]

API = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_api.json").read_text())
OUTPUTS = {"sum": "FLOAT", "positive": "INT64"}


def write_onnx(path: Path, **inputs: list[int]) -> Path:
    """A file that the fake parser reads."""
    path.write_text(json.dumps(inputs))
    return path


def _fits(module: types.ModuleType, value: object, kind: str) -> bool:
    """Whether pybind11 would take `value` for a parameter of that type."""
    if kind == "SupportsInt":
        return isinstance(value, (int, np.integer, enum.Enum)) and not isinstance(value, bool)
    if kind == "Dims":
        return isinstance(value, (tuple, list)) and all(type(size) is int for size in value)
    if kind == "CapsuleType":  # any pointer: pybind11 takes its own objects
        return isinstance(value, module.ILogger)
    if kind == "Buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    plain = {"str": str, "bool": bool, "tuple": tuple, "list": list}
    if kind in plain:
        return type(value) is plain[kind]
    return kind in module.__dict__ and isinstance(value, module.__dict__[kind])


def _bind(module: types.ModuleType, overload: str, args: tuple, kwargs: dict) -> bool:
    """Whether a call fits one declared overload."""
    parameters = [part.partition(": ") for part in overload.split(", ") if part]
    names = [name for name, _, _ in parameters]
    given = dict(zip(names, args)) | kwargs
    optional = {name for name, _, kind in parameters if kind.endswith(" = ...")}
    if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]) or set(names) - set(given) - optional:
        return False
    return all(_fits(module, given[n], kind.removesuffix(" = ...")) for n, _, kind in parameters if n in given)


def _checked(module: types.ModuleType, entry: str, method):
    overloads = module.api[entry]

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        if not any(_bind(module, overload, args, kwargs) for overload in overloads):
            raise TypeError(f"{entry}(): incompatible function arguments {args} {kwargs}; supported: {overloads}")
        return method(self, *args, **kwargs)

    return call


def make(name: str) -> types.ModuleType:
    """The fake of a library in the stored table: `tensorrt 10`, `tensorrt 11` or `tensorrt_rtx 1`."""
    module = types.ModuleType(name.split()[0])
    module.api = API[name]
    module.__version__ = module.api["__version__"]
    for entry in ("BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "TensorIOMode", "DataType"):
        module.__dict__[entry] = enum.IntEnum(entry, module.api[entry], start=0)
    for alias, member in (("float32", "FLOAT"), ("float16", "HALF"), ("bfloat16", "BF16"), ("bool", "BOOL")):
        module.__dict__[alias] = module.DataType[member]
    for member in ("INT64", "INT32", "INT8", "UINT8"):
        module.__dict__[member.lower()] = module.DataType[member]
    module.calls = []
    classes = _classes(module)
    owners = {entry.partition(".")[0] for entry in module.api}
    for cls in classes:
        if cls.__name__ in owners or cls.__name__ == "IHostMemory":
            module.__dict__[cls.__name__] = _declared(module, cls)
    module.Logger = module.ILogger
    if ".init_libnvinfer_plugins" in module.api:
        module.init_libnvinfer_plugins = lambda *args: _checked(
            module, ".init_libnvinfer_plugins", lambda self, *args: module.calls.append("own plugins")
        )(None, *args)
    registry = module.IPluginRegistry()
    module.get_plugin_registry = lambda: registry
    return module


def _declared(module: types.ModuleType, cls: type) -> type:
    """Keep of a class what the version declares, and check its arguments."""
    declared = {entry.partition(".")[2] for entry in module.api if entry.startswith(cls.__name__ + ".")}
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and (not name.startswith("_") or name in declared):
            if name in declared:
                setattr(cls, name, _checked(module, f"{cls.__name__}.{name}", member))
            else:
                delattr(cls, name)
        if isinstance(member, property) and name not in declared:
            delattr(cls, name)

    def refuse(self, name, value):
        if not name.startswith("_") and type(self) is cls and name not in declared:
            raise AttributeError(f"{cls.__name__} has no attribute {name}")
        object.__setattr__(self, name, value)

    cls.__setattr__ = refuse
    return cls


def _classes(trt: types.ModuleType) -> list[type]:
    """The behaviour; what a version lacks is removed afterwards. State is kept in names that begin with `_`."""

    class ILogger:
        Severity = enum.IntEnum("Severity", trt.api["ILogger.Severity"], start=0)

        def __init__(self):
            pass

    class IHostMemory:
        def __init__(self, data):
            self._data = data

        def __bytes__(self):
            return self._data

    class ITensor:
        def __init__(self, name, shape):
            self._name, self._shape = name, shape

        name = property(lambda self: self._name)
        shape = property(lambda self: self._shape)

    class INetworkDefinition:
        def __init__(self, flags):
            self._strong = "FP16" not in trt.BuilderFlag.__members__ or bool(
                flags >> trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1
            )
            self._inputs = []

        num_inputs = property(lambda self: len(self._inputs))
        num_outputs = property(lambda self: len(OUTPUTS))

        def get_input(self, index):
            return self._inputs[index]

        def get_output(self, index):
            return ITensor(list(OUTPUTS)[index], None)

        def add_plugin_v3(self, inputs, shape_inputs, plugin):
            raise AssertionError("not called")

    class ParserError:
        def desc(self):
            return "Assertion failed: Failed to parse the ONNX model."

        def node(self):
            return 3

        def node_name(self):
            return ""

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def parse_from_file(self, model):
            try:
                inputs = json.loads(Path(model).read_text())
            except json.JSONDecodeError:
                self._errors.append(ParserError())
                return False
            self._network._inputs = [ITensor(name, tuple(shape)) for name, shape in inputs.items()]
            return True

        def get_error(self, index):
            return self._errors[index]

    class IOptimizationProfile:
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            self._shapes[input] = (min, opt, max)

    class ITimingCache:
        def __init__(self, data):
            self._data = data

        def serialize(self):
            return IHostMemory(self._data + b"timed;")

    class IBuilderConfig:
        def __init__(self):
            self._profiles, self._flags, self._cache, self._pools = [], {trt.BuilderFlag.TF32}, None, {}

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def set_flag(self, flag):
            self._flags.add(flag)

        def clear_flag(self, flag):
            self._flags.discard(flag)

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool.name] = pool_size

        def create_timing_cache(self, serialized_timing_cache):
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return not cache._data.startswith(b"other")

        def get_timing_cache(self):
            return self._cache

    class Builder:
        def __init__(self, logger):
            self._logger = logger

        def create_network(self, flags=0):
            return INetworkDefinition(int(flags))

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            engine = {
                "profile": config._profiles[0]._shapes,
                "strong": network._strong,
                "flags": sorted(flag.name for flag in config._flags),
                "pools": config._pools,
            }
            if not config._profiles[0]._shapes:
                self._logger.log(ILogger.Severity.ERROR, "Error Code 4: API Usage Error (no profile)")
                return None
            return IHostMemory(json.dumps(engine).encode())

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            try:
                return ICudaEngine(json.loads(serialized_engine), self._logger)
            except ValueError:
                self._logger.log(ILogger.Severity.ERROR, "Serialization Error in engine (magic tag does not match)")
                return None

    class ICudaEngine:
        def __init__(self, engine, logger):
            self._engine, self._logger = engine, logger
            # The order of an engine's tensors is not that of the model's.
            self._names = ["positive", "sum", *engine["profile"]]

        num_io_tensors = property(lambda self: len(self._names))

        def create_execution_context(self):
            return IExecutionContext(self)

        def get_tensor_name(self, index):
            return self._names[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.OUTPUT if name in OUTPUTS else trt.TensorIOMode.INPUT

        def get_tensor_dtype(self, name):
            return trt.DataType[OUTPUTS.get(name, "FLOAT")]

        def get_tensor_profile_shape(self, name, profile_index):
            return self._engine["profile"][name]

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._addresses, self._allocators = engine, {}, {}

        def set_input_shape(self, name, shape):
            smallest, _, largest = self._engine._engine["profile"][name]
            self._shape = shape
            return all(low <= size <= high for low, size, high in zip(smallest, shape, largest))

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return True

        def get_tensor_shape(self, name):
            return {"sum": (self._shape[0],), "positive": (-1,)}.get(name, self._shape)

        def set_output_allocator(self, name, output_allocator):
            self._allocators[name] = output_allocator
            return True

        def execute_async_v3(self, stream_handle):
            images = _array(self._addresses["images"], np.float32, self._shape)
            if np.isnan(images).any():
                self._engine._logger.log(ILogger.Severity.ERROR, "IExecutionContext::enqueueV3: Error Code 1: Cuda")
                return False
            sums = images.sum((1, 2, 3))
            _array(self._addresses["sum"], np.float32, sums.shape)[:] = sums
            positive = np.flatnonzero(sums > 0)
            allocator = self._allocators["positive"]
            address = allocator.reallocate_output_async("positive", 0, positive.nbytes, 256, stream_handle)
            _array(address, np.int64, positive.shape)[:] = positive
            allocator.notify_shape("positive", positive.shape)
            return True

    class IOutputAllocator:
        def __init__(self):
            pass

    class IPluginRegistry:
        def load_library(self, plugin_path):
            trt.calls.append(plugin_path)
            return object() if plugin_path.endswith(".so") else None

    return [cls for cls in locals().values() if inspect.isclass(cls)]


def _array(address: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """The memory at an address."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype).reshape(shape)


class Stream:
    """In place of `torch.cuda.Stream`."""

    cuda_stream = 7

    def synchronize(self) -> None:
        pass
