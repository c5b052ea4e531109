"""What TensorRT's Python libraries say of the calls that this project makes: names, arguments and their types.

`tests/data/tensorrt_api.json` holds it for three libraries, read from their own docstrings by

    python tests/internimage/tensorrt_api.py tensorrt

with `tensorrt_bindings` 10.16 and 11.4 (whose own library was replaced by one of empty functions: importing needs no
more) and `tensorrt_rtx` 1.7.
"""

import importlib
import json
import re
import sys
from types import ModuleType

__all__ = ["read"]

MEMBERS = {
    "Builder": (
        "__init__",
        "create_network",
        "create_builder_config",
        "create_optimization_profile",
        "build_serialized_network",
    ),
    "INetworkDefinition": ("num_inputs", "num_outputs", "get_input", "get_output", "add_plugin_v3"),
    "ITensor": ("name", "shape"),
    "OnnxParser": ("__init__", "parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc", "node", "node_name"),
    "IOptimizationProfile": ("set_shape",),
    "IBuilderConfig": (
        "add_optimization_profile",
        "set_flag",
        "clear_flag",
        "set_memory_pool_limit",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ),
    "ITimingCache": ("serialize",),
    "Runtime": ("__init__", "deserialize_cuda_engine"),
    "ICudaEngine": (
        "create_execution_context",
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_profile_shape",
    ),
    "IExecutionContext": (
        "set_input_shape",
        "set_tensor_address",
        "get_tensor_shape",
        "set_output_allocator",
        "execute_async_v3",
    ),
    "IOutputAllocator": ("__init__",),
    "ILogger": ("__init__", "log"),
    "IPluginRegistry": ("load_library",),
    "": ("init_libnvinfer_plugins",),  # of the module
}
ENUMS = ("BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "TensorIOMode", "DataType")


def _arguments(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _signatures(name: str, doc: str) -> list[str]:
    """Every overload as `name: type, name: type = ...`, without `self`, types without their modules."""
    found = []
    for line in doc.splitlines():
        match = re.fullmatch(rf"(?:\d+\. )?{name}\((.*)\)(?: -> .*)?", line.strip())
        if match and match[1] != "*args, **kwargs":
            arguments = [part for part in _arguments(match[1]) if not part.startswith("self")]
            arguments = [re.sub(r" = .*", " = ...", part) for part in arguments]
            found.append(", ".join(re.sub(r"(?<=[ \[])[\w.]+\.(?=\w)", "", part) for part in arguments))
    return found


def read(trt: ModuleType) -> dict[str, list[str] | str]:
    """The members of `MEMBERS` that a library has, with their overloads or the word property; the enumerations."""
    api: dict[str, list[str] | str] = {"__version__": trt.__version__}
    for owner, names in MEMBERS.items():
        for name in names:
            member = getattr(getattr(trt, owner, None) if owner else trt, name, None)
            if isinstance(member, property):
                api[f"{owner}.{name}"] = "property"
            elif member is not None:
                api[f"{owner}.{name}"] = _signatures(name, member.__doc__)
    for name in ENUMS:
        api[name] = sorted(getattr(trt, name).__members__)
    api["ILogger.Severity"] = sorted(trt.ILogger.Severity.__members__)
    return api


if __name__ == "__main__":
    print(json.dumps(read(importlib.import_module(sys.argv[1])), indent=0))
