"""TensorRT engines: building from ONNX files, and the export format; `tensorrt_engine.py` runs them.

Every type is the file's: export it with `--half` for float16, quantise it (`tensorrt_int8.py`) for int8. Choosing types
and calibration are gone from TensorRT 11, and version 10 is used the same way. A file with the GridSample core needs no
plugin.

State: parsing and building were run with TensorRT for RTX 1.7, on a machine without a GPU. Nothing was run with
`tensorrt`, nor on a GPU: there, each call was only checked against the signatures of versions 10.16, 11.4 and 1.7.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch

from internimage.errors import UserError

from .exportable import Exportable
from .tensorrt_engine import Engine, Shape, description, description_path
from .tensorrt_library import is_rtx, library, load_plugins, logger, require_gpu

__all__ = ["BuildOptions", "build", "load", "write"]

Range = tuple[int, int, int]  # smallest, usual, largest


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Attributes:
        batch, height, width: smallest, usual and largest, for the dimensions that the file leaves open; None where the
            file says them all.
        tf32: let matrix products of float32 round their factors to 10 bits, faster and off by about 1e-3.
        workspace: upper limit of temporary GPU memory in bytes.
        timing_cache: a file of kernel timings, read if there and written back: later builds are faster.
        plugins: libraries of plugins that the file needs.
        metadata: of the model, kept beside the engine.
    """

    batch: Range = (1, 1, 1)
    height: Range | None = None
    width: Range | None = None
    tf32: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None
    plugins: Sequence[Path] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def profile(self, shape: Sequence[int], name: str) -> tuple[Shape, Shape, Shape]:
        """The smallest, usual and largest shape of an input `(N, C, H, W)` whose open dimensions are -1."""
        ranges = (self.batch, None, self.height, self.width)
        if len(shape) != 4 or shape[1] == -1:
            raise UserError(f"input {name} has the shape {tuple(shape)}; expected (N, 3, H, W)")
        columns = []
        for size, choice, what in zip(shape, ranges, ("batch", "channels", "height", "width")):
            if size != -1:
                columns.append((size,) * 3)
            elif choice is None:
                raise UserError(f"the model takes any {what}: say for which sizes to build (--size)")
            elif not 0 < choice[0] <= choice[1] <= choice[2]:
                raise UserError(f"{what} {choice}: expected smallest <= usual <= largest")
            else:
                columns.append(choice)
        return tuple(zip(*columns))


def build(onnx_path: Path, engine_path: Path, options: BuildOptions, trt: ModuleType | None = None) -> dict:
    """Build an engine from an ONNX file; a `.json` beside it says for what. Return that description.

    Raises:
        UserError: the file cannot be parsed or built, or an option does not fit the library's version.
    """
    trt = trt or library()
    if is_rtx(trt) and options.timing_cache is not None:
        raise UserError("TensorRT for RTX has no timing cache; leave out --timing-cache")
    if not is_rtx(trt):
        require_gpu("building with TensorRT")
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist; export a model with --format onnx first")
    load_plugins(trt, options.plugins)
    log = logger(trt)
    log.messages.clear()
    builder = trt.Builder(log)
    network, parser = _parse(trt, builder, onnx_path)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {tensor.name: options.profile(tuple(tensor.shape), tensor.name) for tensor in inputs}
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT rejects the sizes {shapes}: {log.reason()}")
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.timing_cache is not None:
        saved = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(saved), False):
            raise UserError(f"{options.timing_cache} is of another TensorRT version or GPU; delete it")
    serialized = builder.build_serialized_network(network, config)
    del parser  # owns the weights until here
    if serialized is None:
        raise UserError(f"TensorRT cannot build {onnx_path}: {log.reason()}")
    if options.timing_cache is not None:
        options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    about = {
        "library": "tensorrt_rtx" if is_rtx(trt) else "tensorrt",
        "version": trt.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "inputs": shapes,
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
        "metadata": options.metadata,
    }
    engine_path.parent.mkdir(parents=True, exist_ok=True)
    engine_path.write_bytes(bytes(serialized))
    description_path(engine_path).write_text(json.dumps(about, indent=1))
    return description(engine_path)


def _parse(trt: ModuleType, builder, onnx_path: Path) -> tuple:
    """The network of an ONNX file, with the file's types, and the parser that made it."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse_from_file(str(onnx_path)):
        reason = logger(trt).reason()
        if parser.num_errors:
            error = parser.get_error(0)
            reason = f"{error.desc().splitlines()[0]} (node {error.node_name() or error.node()})"
        if "plugin" in reason.lower():
            hint = "export with --core grid_sample, or with --core custom --half and give the plugin (--plugin)"
            reason += f"; {'TensorRT for RTX has no plugin layers, tensorrt has' if is_rtx(trt) else hint}"
        raise UserError(f"TensorRT cannot read {onnx_path}: {reason}")
    if not network.num_outputs:  # TensorRT's parser takes some files of other kinds for empty models
        raise UserError(f"{onnx_path} is not an ONNX model, or an empty one")
    return network, parser


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write the engine, and beside it the ONNX file that it is built from.

    An engine is bound to its GPU and checked on it, so this needs one; elsewhere export `--format onnx`.
    """
    trt = library()
    require_gpu("--format tensorrt")
    from .onnx import write as write_onnx  # building from a file needs no ONNX packages

    onnx_path = path.with_suffix(".onnx")
    write_onnx(exportable, onnx_path, core=core, half=half)
    shapes = [tuple(images.shape) for images in exportable.samples]
    height, width = exportable.size
    options = BuildOptions(
        batch=_range([8, *(shape[0] for shape in shapes)], 1),
        height=_range([shape[2] for shape in shapes], height),
        width=_range([shape[3] for shape in shapes], width),
        metadata=exportable.metadata,
    )
    build(onnx_path, path, options, trt)


def _range(sizes: Sequence[int], usual: int) -> Range:
    return min(*sizes, usual), usual, max(*sizes, usual)


def load(path: Path, *, threads: int = 1) -> Engine:
    """An engine on the GPU; see `formats.Runtime`. `threads` has no meaning there."""
    return Engine(path)
