"""What TensorRT's Python libraries say of the calls that this project makes: names and arguments.

`tests/data/tensorrt_api.json` holds what three of them have in common: `tensorrt_bindings` 10.16 and 11.4 (whose own
library was replaced by one of empty functions: importing needs no more) and `tensorrt_rtx` 1.7. `read` finds it in
their docstrings.
"""

import enum
import re
from types import ModuleType

__all__ = ["read"]

NAMES = """
    Builder.__init__ Builder.create_network Builder.create_builder_config Builder.create_optimization_profile
    Builder.build_serialized_network BuilderFlag.TF32 NetworkDefinitionCreationFlag.STRONGLY_TYPED
    INetworkDefinition.num_inputs INetworkDefinition.num_outputs INetworkDefinition.get_input
    INetworkDefinition.get_output INetworkDefinition.num_layers INetworkDefinition.get_layer
    ITensor.name ITensor.shape ILayer.type LayerType.GRID_SAMPLE
    IGridSampleLayer.interpolation_mode InterpolationMode.NEAREST InterpolationMode.LINEAR InterpolationMode.CUBIC
    OnnxParser.__init__ OnnxParser.parse_from_file OnnxParser.num_errors OnnxParser.get_error
    ParserError.desc ParserError.node ParserError.node_name IOptimizationProfile.set_shape
    IBuilderConfig.add_optimization_profile IBuilderConfig.clear_flag
    Runtime.__init__ Runtime.deserialize_cuda_engine ICudaEngine.create_execution_context ICudaEngine.get_tensor_dtype
    IExecutionContext.set_input_shape IExecutionContext.set_tensor_address IExecutionContext.get_tensor_shape
    IExecutionContext.execute_async_v3 IPluginRegistry.load_library get_plugin_registry init_libnvinfer_plugins
    DataType.FLOAT DataType.INT64 DataType.INT32 DataType.BOOL
    ILogger.Severity.INTERNAL_ERROR ILogger.Severity.ERROR float32 int64 int32 bool
"""


def _arguments(text: str) -> list[str]:
    """Names of the parameters, with ` = ...` after those that have a default."""
    while re.search(r"\[[^][]*\]", text):
        text = re.sub(r"\[[^][]*\]", "", text)  # brackets of types have commas
    parts = [part.strip() for part in text.split(",") if part.strip() and not part.strip().startswith("self")]
    return [part.partition(":")[0] + (" = ..." if " = " in part else "") for part in parts]


def _signatures(name: str, doc: str) -> list[str]:
    """The parameters of every overload."""
    found = []
    for line in doc.splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{name}\((.*)\)(?: -> .*)?", line.strip())
        if match and match[1] != "*args, **kwargs":
            found.append(", ".join(_arguments(match[1])))
    return found


def read(trt: ModuleType) -> dict[str, list[str] | str]:
    """Those of `NAMES` that a library has: the parameters of every overload, or the word property or value."""
    api: dict[str, list[str] | str] = {}
    for name in NAMES.split():
        member = trt
        for part in name.split("."):
            member = getattr(member, part, None)
        if isinstance(member, property):
            api[name] = "property"
        elif isinstance(member, enum.Enum) or hasattr(type(member), "__members__"):
            api[name] = "value"
        elif member is not None:
            api[name] = _signatures(name.split(".")[-1], member.__doc__)
    return api
