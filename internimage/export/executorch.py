"""ExecuTorch's `.pte`, one static shape, for devices without Python (Android, iOS, embedded Linux).

XNNPACK runs the convolutions, linear layers and element-wise steps; norms, GridSample and the rest run on ExecuTorch's
portable kernels, which are small rather than fast.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime as ExecuTorch

from internimage.errors import UserError

from .cores import prepare
from .formats import Runtime
from .progress import phase, quiet
from .spec import Exportable

__all__ = ["load", "write"]


def write(exportable: Exportable, path: Path, *, core: str = "grid_sample", half: bool = False) -> None:
    """Write `path` for the shape of `exportable.images`. Raises `UserError` if the model cannot be lowered."""
    if half:
        raise UserError("--format executorch is float32 only: ExecuTorch's XNNPACK computes these layers in float32")
    if exportable.dynamic:
        raise UserError("--format executorch holds one shape: add --static, and --batch-size and --size if needed")
    images = exportable.images
    silence = contextlib.redirect_stdout(io.StringIO())
    with phase("Lowering to ExecuTorch"), quiet(), silence:
        program = torch.export.export(prepare(exportable.model, core), (images,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        lowered.write_to_file(file)


def load(path: Path, *, threads: int = 1) -> Runtime:
    """Load a file into ExecuTorch's Python runtime. `threads` applies to the whole process.

    Raises:
        UserError: the file cannot be read; when run, images of another shape.
    """
    portable_lib._unsafe_reset_threadpool(threads)  # there is no public call
    try:
        program = ExecuTorch.get().load_program(path)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise UserError(f"ExecuTorch cannot read {path}: {str(error).splitlines()[0]}") from None
    shape = tuple(method.metadata.input_tensor_meta(0).sizes())

    def run(images: np.ndarray) -> list[np.ndarray]:
        if images.shape != shape:
            raise UserError(f"this ExecuTorch file takes images {shape}; got {images.shape}: export that shape")
        return [output.numpy() for output in method.execute([torch.from_numpy(images)])]

    return run
