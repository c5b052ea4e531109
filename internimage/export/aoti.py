"""AOTInductor's `.pt2`: the model compiled ahead of time to a library that PyTorch loads, from Python or C++.

The file runs without this project, on processors like the one that compiled it; C++ loads it with
`torch::inductor::AOTIModelPackageLoader`. R-CNN detectors call torchvision's operators: import or link torchvision
before loading. The core `custom` needs this project's CPU kernels: call `ops_dcnv3.backends.load("cpu")` before. Height
and width are fixed: free ones make compilation many times longer and the result slower. The library does not check
shapes, and reads out of bounds on smaller images, unless the environment variable AOTI_RUNTIME_CHECK_INPUTS is 1;
`load` checks them.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim

from internimage.errors import UserError
from ops_dcnv3 import backends

from .cores import prepare
from .formats import Runtime
from .progress import phase, quiet
from .spec import Exportable

__all__ = ["load", "write"]

_SHAPE, _CORE = "input_shape", "core"
_MOST_IMAGES = 4096  # the compiler needs a bound


def write(exportable: Exportable, path: Path, *, core: str = "gather", half: bool = False) -> None:
    """Write `path`, for the size of `exportable.images`, and any batch if `exportable.dynamic`; takes minutes.

    Raises:
        UserError: no C++ compiler, or float16.
    """
    if half:
        raise UserError("--format aoti is compiled for the CPU in float32, since float16 is slower there; omit --half")
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError("--format aoti needs a C++ compiler: install g++ (apt install g++), or set CXX") from None
    images = exportable.images
    shape, dynamic_shapes = list(images.shape), None
    if exportable.dynamic:
        shape[0], dynamic_shapes = None, ({0: Dim("batch", max=_MOST_IMAGES)},)
        images = images.repeat(2, 1, 1, 1)[:2]  # a batch of one would be taken for a constant
    path.parent.mkdir(parents=True, exist_ok=True)
    with phase("Compiling"), torch.no_grad(), quiet(), _whole_grid_sample():
        program = torch.export.export(prepare(exportable.model, core), (images,), dynamic_shapes=dynamic_shapes)
        if table := exportable.decompositions():
            program = program.run_decompositions(table)
        configuration = {
            "aot_inductor.metadata": {**exportable.metadata, _SHAPE: json.dumps(shape), _CORE: core},
            "aot_inductor.check_lowerbound": False,  # one image is fine
            "freezing": True,  # packs weights for oneDNN: T takes 93 ms instead of 185
        }
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configuration)


@contextlib.contextmanager
def _whole_grid_sample():
    """Keep PyTorch's kernel for grid_sample: a small DINO takes 25 ms with it, 116 ms with Inductor's code."""
    table, name = select_decomp_table(), torch.ops.aten.grid_sampler_2d.default
    rules = {name: table.pop(name)} if name in table else {}
    try:
        yield
    finally:
        table.update(rules)


def load(path: Path, *, threads: int = 1) -> Runtime:
    """Load a file into this PyTorch. `threads` applies to the whole process.

    Raises:
        UserError: the file cannot be read, or its kernels are missing; when run, images of another shape.
    """
    torch.set_num_threads(threads)
    try:
        with quiet():
            model = aoti_load_package(str(path))
        about = model.get_metadata()
        shape = json.loads(about[_SHAPE])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"PyTorch {torch.__version__} cannot run {path}: {reason}; export it again here") from None
    if about.get(_CORE) == "custom" and (reason := backends.load("cpu")):
        raise UserError(f"{path} was exported with --core custom and needs this project's CPU kernels: {reason}")

    def run(images: np.ndarray) -> list[np.ndarray]:
        if images.ndim != 4 or any(a not in (None, b) for a, b in zip(shape, images.shape)):
            expected = " x ".join(str(length or "N") for length in shape)
            raise UserError(f"this file is compiled for images {expected}; got {images.shape}: export that --size")
        with torch.inference_mode():
            return [output.numpy() for output in model(torch.from_numpy(images))]

    return run
