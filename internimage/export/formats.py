"""The formats that models can be exported to. Each has a module of its name, imported when used."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from internimage.errors import UserError
from internimage.files import check_writable

__all__ = ["FORMATS", "Format", "Runtime", "find_format"]

# A loaded model: images `(N, 3, H, W)` float32, normalised, to the outputs.
Runtime = Callable[[np.ndarray], list[np.ndarray]]


def _installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that the module is in
        return False
    return spec is not None and spec.origin is not None  # a plain folder of that name has no origin


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: as in `--format`.
        suffix: of the file.
        packages: import name to pip name of what it needs.
        cores: supported forms of the operator (see `cores.py`), the default first.
        int8: whether `quantize.py` writes it.
        one_size: whether height and width are fixed even if the batch is free.
    """

    name: str
    suffix: str
    packages: dict[str, str]
    cores: tuple[str, ...]
    int8: bool = False
    one_size: bool = False

    def _module(self) -> ModuleType:
        missing = [pip for module, pip in self.packages.items() if not _installed(module)]
        if missing:
            raise UserError(f"format {self.name} needs {', '.join(missing)}: pip install {' '.join(missing)}")
        return importlib.import_module(f"internimage.export.{self.name}")

    @property
    def write(self) -> Callable[..., None]:
        """`write(exportable: Exportable, path: Path, *, core: str, half: bool) -> None`."""
        return self._module().write

    @property
    def load(self) -> Callable[..., Runtime]:
        """`load(path: Path, *, threads: int) -> Runtime`."""
        return self._module().load

    def choose(self, core: str | None) -> str:
        """The core to use, the default if None. Raises `UserError` if it or a package is missing."""
        self._module()
        core = core or self.cores[0]
        if core not in self.cores:
            raise UserError(f"format {self.name} does not support core {core!r}; supported: {', '.join(self.cores)}")
        return core

    def check_path(self, path: Path) -> None:
        """Raise `UserError` if a file of this format cannot be written there."""
        if path.suffix != self.suffix or path.is_dir():
            raise UserError(f"the output of format {self.name} must be a file that ends in {self.suffix}; got {path}")
        check_writable(path)


_ONNX = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
_STANDARD = ("grid_sample", "deform_conv", "gather")
_ALL = (
    Format("onnx", ".onnx", _ONNX, (*_STANDARD, "custom"), int8=True),
    Format("openvino", ".xml", {**_ONNX, "openvino": "openvino"}, _STANDARD, int8=True),
    Format("aoti", ".pt2", {}, ("gather", "grid_sample", "custom"), one_size=True),
    Format("executorch", ".pte", {"executorch.runtime": "executorch"}, ("grid_sample", "gather")),
    Format("tensorrt", ".engine", _ONNX, ("grid_sample",)),
)
FORMATS = {item.name: item for item in _ALL}


def find_format(name: str) -> Format:
    """The format of that name. Raises `UserError` if there is none."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
