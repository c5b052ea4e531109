"""A stand-in for TensorRT's Python module, for tests: NOT TensorRT, and it optimises nothing.

It has the names and parameters that the real libraries declare (`tests/data/tensorrt_api.json`). Its engine is the ONNX
file, whose GridSample nodes interpolate as the network's layers say, and runs in ONNX Runtime on memory given by
address, as a GPU would.
"""

import base64
import ctypes
import enum
import inspect
import json
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Stream", "VERSIONS", "make", "write_onnx"]

_DATA = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_api.json").read_text())
CALLS, VERSIONS = _DATA["calls"], _DATA["versions"]


def write_onnx(path: Path, *shape: int, opset: int = 19, mode: str = "bilinear", **metadata: str) -> Path:
    """A file that gives four samples, the means of the channels and the brightest one of `images` of `shape`."""
    sizes = [size if size > 0 else f"axis{axis}" for axis, size in enumerate(shape)]
    places = np.linspace(-0.8, 0.7, 8, dtype=np.float32).reshape(1, 2, 2, 2)
    nodes = [
        helper.make_node("ReduceMean", ["images", "hw"], ["logits"], keepdims=0),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        helper.make_node("Shape", ["images"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "rest"], ["all"], axis=0),
        helper.make_node("Expand", ["places", "all"], ["grid"]),
        helper.make_node("GridSample", ["images", "grid"], ["sampled"], mode=mode),
    ]
    constants = {"hw": np.array([2, 3]), "rest": np.array([2, 2, 2]), "places": places}
    graph = helper.make_graph(
        nodes,
        "sampler",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes)],
        [
            helper.make_tensor_value_info("sampled", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("label", TensorProto.INT64, None),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def make(name: str, *, misreads: bool = False) -> types.ModuleType:
    """The fake of `tensorrt 10`, `tensorrt 11` or `tensorrt_rtx 1`. `misreads`: takes mode `linear` for nearest."""
    module = types.ModuleType(name.split()[0])
    module.__version__ = VERSIONS[name]
    module.misreads, module.loaded = misreads, []
    for entry in ("BuilderFlag", "NetworkDefinitionCreationFlag", "LayerType", "InterpolationMode", "DataType"):
        members = [call.split(".")[1] for call in CALLS if call.startswith(f"{entry}.")]
        module.__dict__[entry] = enum.IntEnum(entry, members, start=0)
    for alias, member in (("float32", "FLOAT"), ("int64", "INT64"), ("int32", "INT32"), ("bool", "BOOL")):
        module.__dict__[alias] = module.DataType[member]
    for cls in _classes(module):
        module.__dict__[cls.__name__] = cls
        _check_declared(cls)
    module.Logger = module.ILogger
    module.init_libnvinfer_plugins = lambda logger, namespace: module.loaded.append("its own")
    registry = module.IPluginRegistry()
    module.get_plugin_registry = lambda: registry
    return module


def _check_declared(cls: type) -> None:
    """Hold the fake to the libraries: every public member is declared, with these parameters."""
    for name, member in vars(cls).items():
        entry = f"{cls.__name__}.{name}"
        if isinstance(member, property):
            assert CALLS[entry] == "property", entry
        elif inspect.isfunction(member) and (name == "__init__" and entry in CALLS or not name.startswith("_")):
            parameters = list(inspect.signature(member).parameters.values())[1:]
            given = [item.name + " = ..." * (item.default is not item.empty) for item in parameters]
            declared = [[part for part in overload.split(", ") if part] for overload in CALLS[entry]]
            # A fake may leave out what is optional.
            short = [[part for part in overload if not part.endswith("= ...")] for overload in declared]
            assert given in declared + short, (entry, given)


def _classes(trt: types.ModuleType) -> list[type]:
    """The behaviour. State is kept in names that begin with `_`."""

    class ILogger:
        Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR"], start=0)

    class ITensor:
        def __init__(self, value):
            self._value = value

        name = property(lambda self: self._value.name)
        shape = property(lambda self: tuple(d.dim_value or -1 for d in self._value.type.tensor_type.shape.dim))

    class ILayer:
        __slots__ = ("_node",)  # so that an attribute of a derived class cannot be set

        def __init__(self, node):
            self._node = node

        type = property(lambda self: trt.LayerType.GRID_SAMPLE if self._node.op_type == "GridSample" else None)

    class IGridSampleLayer(ILayer):
        __slots__ = ()

        def _set(self, mode):
            _set_mode(self._node, mode.name)

        interpolation_mode = property(None, _set)

    class INetworkDefinition:
        def __init__(self, flags):
            self._strong, self._model = bool(flags >> trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1), None

        num_inputs = property(lambda self: len(self._model.graph.input))
        num_outputs = property(lambda self: len(self._model.graph.output))
        num_layers = property(lambda self: len(self._model.graph.node))

        def get_input(self, index):
            return ITensor(self._model.graph.input[index])

        def get_output(self, index):
            return ITensor(self._model.graph.output[index])

        def get_layer(self, index):
            return ILayer(self._model.graph.node[index])

    class ParserError:
        def desc(self):
            return "Assertion failed: no importer or plugin for this node"

        def node(self):
            return 3

        def node_name(self):
            return ""

    class OnnxParser:
        def __init__(self, network, logger):
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def parse_from_file(self, model):
            self._network._model = proto = onnx.load(model)
            if any(node.domain for node in proto.graph.node):
                self._errors.append(ParserError())
            for node in proto.graph.node:
                if node.op_type == "GridSample" and trt.misreads and node.attribute[0].s == b"linear":
                    _set_mode(node, "NEAREST")
            return not self._errors

        def get_error(self, index):
            return self._errors[index]

    class IOptimizationProfile:
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            self._shapes[input] = (min, opt, max)

    class IBuilderConfig:
        def __init__(self):
            self._profiles, self._flags = [], {trt.BuilderFlag.TF32}

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def clear_flag(self, flag):
            self._flags.discard(flag)

    class IHostMemory:
        def __init__(self, data):
            self._data = data

        def __bytes__(self):
            return self._data

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
            if not config._profiles[0]._shapes:
                self._logger.log(ILogger.Severity.ERROR, "Error Code 4: API Usage Error (no profile)")
                return None
            engine = {
                "profile": config._profiles[0]._shapes,
                "strong": network._strong,
                "flags": [flag.name for flag in config._flags],
                "model": base64.b64encode(network._model.SerializeToString()).decode(),
            }
            return IHostMemory(json.dumps(engine).encode())

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            try:
                return ICudaEngine(base64.b64decode(json.loads(serialized_engine)["model"]), self._logger)
            except ValueError:
                self._logger.log(ILogger.Severity.ERROR, "Serialization Error in engine (magic tag does not match)")
                return None

    class ICudaEngine:
        def __init__(self, model, logger):
            self._session, self._logger = onnxruntime.InferenceSession(model), logger

        def create_execution_context(self):
            return IExecutionContext(self)

        def get_tensor_dtype(self, name):
            (kind,) = (output.type for output in self._session.get_outputs() if output.name == name)
            return trt.DataType.INT64 if "int64" in kind else trt.DataType.FLOAT

    class IExecutionContext:
        def __init__(self, engine):
            self._engine, self._addresses = engine, {}

        def set_input_shape(self, name, shape):
            self._input, self._shape = name, shape
            return True

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return True

        def get_tensor_shape(self, name):
            return self._run(np.zeros(self._shape, np.float32))[name].shape

        def _run(self, images):
            names = [output.name for output in self._engine._session.get_outputs()]
            return dict(zip(names, self._engine._session.run(None, {self._input: images})))

        def execute_async_v3(self, stream_handle):
            images = _array(self._addresses[self._input], np.float32, self._shape)
            if np.isnan(images).any():
                self._engine._logger.log(ILogger.Severity.ERROR, "IExecutionContext::enqueueV3: Error Code 1: Cuda")
                return False
            for name, value in self._run(images).items():
                _array(self._addresses[name], value.dtype, value.shape)[:] = value
            return True

    class IPluginRegistry:
        def load_library(self, plugin_path):
            trt.loaded.append(plugin_path)
            return object() if plugin_path.endswith(".so") else None

    return [cls for cls in locals().values() if inspect.isclass(cls) and cls.__name__ != "IHostMemory"]


def _set_mode(node: onnx.NodeProto, mode: str) -> None:
    """Let a GridSample node interpolate as `mode` says, in the words of its opset."""
    (attribute,) = [attribute for attribute in node.attribute if attribute.name == "mode"]
    old = attribute.s in (b"bilinear", b"bicubic")
    attribute.s = {"LINEAR": b"bilinear" if old else b"linear", "NEAREST": b"nearest", "CUBIC": b"cubic"}[mode]


def _array(address: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array over memory that another library holds."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), dtype).reshape(shape)


class Stream:
    """In place of `torch.cuda.Stream`."""

    cuda_stream = 7

    def synchronize(self) -> None:
        pass
