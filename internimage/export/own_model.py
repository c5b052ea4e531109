"""Export your own model: any module on images that contains DCNv3 or DCNv4 layers, or whole backbones."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from internimage.errors import UserError

from .cores import shared_copy
from .formats import find_format
from .parity import Parity, check_parity, default_tolerance, require_parity
from .spec import Check, Exportable

__all__ = ["export"]


class _NamedOutputs(nn.Module):
    """Returns a tensor, a sequence or a dictionary of tensors as a tuple, and stores the names of a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: list[str] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(images)
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        elif isinstance(outputs, dict):
            self.names, outputs = list(outputs), outputs.values()
        outputs = tuple(outputs)
        if strange := [type(output).__name__ for output in outputs if not isinstance(output, Tensor)]:
            raise UserError(
                f"outputs must be tensors; this model returns {strange[0]}: wrap it in a module that returns tensors"
            )
        return outputs


def export(
    model: nn.Module,
    path: str | Path,
    images: Tensor | Sequence[Tensor],
    *,
    format: str = "onnx",
    core: str | None = None,
    half: bool = False,
    dynamic: bool = True,
    output_names: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
    tolerance: float | None = None,
    threads: int = 1,
) -> list[Parity]:
    """Write `model` for another runtime and compare the file with PyTorch.

    Args:
        model: takes one tensor of images; returns a tensor, or a sequence or dictionary of tensors. Exported in
            evaluation mode; it is not changed.
        path: the file, with the format's suffix.
        images: `(N, C, H, W)` float32, one tensor, or several to compare with; the first one is traced.
        format: `onnx`, `openvino`, `aoti`, `executorch` or `tensorrt`.
        core: form of the operator, one of `internimage.export.CORES`; defaults to the first that the format supports.
        half: float16 weights and activations.
        dynamic: leave batch, height and width free (with `aoti` the batch alone; not with `executorch`).
        output_names: defaults to the keys of a dictionary, or else `output0`, `output1` and so on.
        metadata: written into the file if the format supports it.
        tolerance: the largest error allowed, relative to an output's largest value; defaults to 1e-4, with `half` 5e-2.
        threads: number of CPU threads of the runtime.

    Returns:
        The errors for each of `images`.

    Raises:
        UserError: a format that is not installed or does not support the model, or results that differ too much from
            PyTorch's; the file then ends in `.failed`.
    """
    path, form = Path(path), find_format(format)
    core = form.choose(core)
    form.check_path(path)
    samples = [images] if isinstance(images, Tensor) else list(images)
    if not samples or not all(isinstance(item, Tensor) and item.ndim == 4 for item in samples):
        raise UserError("images must be a tensor (N, C, H, W), or several of them in a list")
    wrapped = _NamedOutputs(shared_copy(model))
    exportable = Exportable(wrapped, samples[0], (), metadata or {}, dynamic)
    count = len(exportable.reference(samples[0]))
    names = tuple(output_names or wrapped.names or (f"output{index}" for index in range(count)))
    if len(names) != count:
        raise UserError(f"output_names has {len(names)} names, but the model has {count} outputs")
    exportable.output_names = names
    form.write(exportable, path, core=core, half=half)
    # A given tolerance is strict: the model's own jumps do not count.
    limit = math.inf if tolerance else default_tolerance(half)
    rows = check_parity(exportable, Check(samples), form.load(path, threads=threads), limit)
    require_parity(rows, path, tolerance or limit)
    return rows
