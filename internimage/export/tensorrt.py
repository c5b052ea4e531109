"""TensorRT engines: building from ONNX files, and the export format; `tensorrt_engine.py` runs them.

The file sets every type: export it with `--half` for float16, with `--int8 --symmetric` for int8. TensorRT 11 no longer
chooses types or calibrates, and version 10 is used in the same way. Only files of `--core custom` need a plugin.

State: parsing and building were run with TensorRT for RTX 1.7, on a machine without a GPU. Nothing was run with
`tensorrt` or on a GPU: there, each call was only checked against the signatures of versions 10.16, 11.4 and 1.7.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import onnx

from internimage.errors import UserError

from . import onnx as onnx_format
from . import tensorrt_engine
from .spec import Exportable
from .tensorrt_engine import Engine, description_path, is_rtx, library, load_plugins, logger, require_gpu

__all__ = ["Range", "build", "load", "write"]

Range = tuple[int, int, int]  # smallest, usual, largest


def build(
    onnx_path: Path,
    engine_path: Path,
    *,
    batch: Range = (1, 1, 1),
    height: Range | None = None,
    width: Range | None = None,
    tf32: bool = False,
    plugins: Sequence[Path] = (),
    trt: ModuleType | None = None,
) -> dict:
    """Build an engine from an ONNX file, with a `.json` file that describes it. Return that description.

    Args:
        onnx_path: file of `--format onnx`.
        engine_path: file to write.
        batch, height, width: for the file's free dimensions.
        tf32: round the factors of float32 matrix products to 10 bits: faster, with errors of about 1e-3.
        plugins: plugin libraries that the file needs.
        trt: the library; defaults to the first one installed.

    Raises:
        UserError: the file cannot be parsed or built, or an option is invalid.
    """
    trt = trt or library()
    if not is_rtx(trt):
        require_gpu("building with TensorRT")
    model = _read(onnx_path)
    load_plugins(trt, plugins)
    log = logger(trt)
    log.messages.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        raise UserError(f"TensorRT cannot read {onnx_path}: {_parser_error(trt, parser)}")
    _set_interpolation(trt, network, model)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    ranges = (batch, None, height, width)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: _profile(tuple(tensor.shape), ranges) for tensor in inputs}
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT rejects the sizes {shapes}: {log.reason()}")
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    serialized = builder.build_serialized_network(network, config)
    del parser  # owns the weights until here
    if serialized is None:
        raise UserError(f"TensorRT cannot build {onnx_path}: {log.reason()}")
    about = {
        "library": "tensorrt_rtx" if is_rtx(trt) else "tensorrt",
        "version": trt.__version__,
        "gpu": tensorrt_engine.gpu_name(),
        "inputs": shapes,
        "outputs": [network.get_output(index).name for index in range(network.num_outputs)],
        "metadata": {item.key: item.value for item in model.metadata_props},
    }
    engine_path.parent.mkdir(parents=True, exist_ok=True)
    engine_path.write_bytes(bytes(serialized))
    description_path(engine_path).write_text(json.dumps(about, indent=1))
    return about


def _read(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without weights in other files."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; export a model with --format onnx first")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, which is no public class
        raise UserError(f"{path} is not an ONNX model: {error}; export it again") from None
    if not model.graph.output:  # other files may be read as an empty model
        raise UserError(f"{path} is not an ONNX model, or an empty one; export it again")
    return model


def _parser_error(trt: ModuleType, parser) -> str:
    if not parser.num_errors:
        return logger(trt).reason()
    error = parser.get_error(0)
    reason = f"{error.desc().splitlines()[0]} (node {error.node_name() or error.node()})"
    if "plugin" not in reason.lower():
        return reason
    if is_rtx(trt):
        return f"{reason}; TensorRT for RTX has no plugin layers, tensorrt has"
    return f"{reason}; export without --core custom, or give the plugin (--plugin)"


def _set_interpolation(trt: ModuleType, network, model: onnx.ModelProto) -> None:
    """Set the interpolation of every grid-sample layer to the file's.

    Parsers before a fix of 2026 silently read GridSample of opset 20 and mode `linear` as `nearest` (onnx-tensorrt,
    pull request 1060). Our files have opset 19; others may not.
    """
    names = {"linear": "LINEAR", "bilinear": "LINEAR", "nearest": "NEAREST", "cubic": "CUBIC", "bicubic": "CUBIC"}
    modes = set()
    for node in model.graph.node:
        if node.op_type == "GridSample":
            given = [attribute.s.decode() for attribute in node.attribute if attribute.name == "mode"]
            modes.add(names[given[0] if given else "linear"])
    if len(modes) > 1:
        raise UserError(f"the model has GridSample nodes of the modes {', '.join(sorted(modes))}; use one of them")
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.GRID_SAMPLE:
            layer.__class__ = trt.IGridSampleLayer  # get_layer gives the base class
            layer.interpolation_mode = getattr(trt.InterpolationMode, next(iter(modes), "LINEAR"))


def _profile(shape: tuple[int, ...], ranges: Sequence[Range | None]) -> tuple[tuple[int, ...], ...]:
    """The smallest, usual and largest shape of an input `(N, C, H, W)` whose free dimensions are -1."""
    if len(shape) != 4 or shape[1] == -1:
        raise UserError(f"the model's input has the shape {shape}; expected (N, 3, H, W)")
    columns = []
    for size, choice, what in zip(shape, ranges, ("batch", "channels", "height", "width")):
        if size != -1:
            choice = (size, size, size)
        elif choice is None:
            raise UserError(f"the model takes any {what}: give the sizes to build for (--size)")
        elif not 0 < choice[0] <= choice[1] <= choice[2]:
            raise UserError(f"{what} {choice}: expected smallest <= usual <= largest")
        columns.append(choice)
    return tuple(zip(*columns))


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write the engine, for batches up to 8 and half to 1.25 times the size, and the ONNX file that it is built from.

    An engine is bound to its GPU and checked on it, so this needs a GPU; without one, export `--format onnx`.
    """
    trt = library()
    require_gpu("--format tensorrt")
    onnx_path = path.with_suffix(".onnx")
    onnx_format.write(exportable, onnx_path, core=core, half=half)
    height, width = ((length // 2, length, length * 5 // 4 + 1) for length in exportable.images.shape[2:])
    build(onnx_path, path, batch=(1, 1, 8), height=height, width=width, trt=trt)


def load(path: Path, *, threads: int = 1) -> Engine:
    """An engine on the GPU, a `formats.Runtime`; `threads` is ignored."""
    return Engine(path)
