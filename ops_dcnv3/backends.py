"""The backends of the operator: which are available, and why the others are not.

`cuda` and `cpu` are compiled libraries that add kernels to the operators of schema.py; `triton` supports GPUs without a
CUDA toolkit; `torch` is plain PyTorch and always available.
"""

import ctypes
import functools
import importlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from . import build
from .schema import constant_when_compiled

__all__ = ["BackendError", "cpu_capability", "load", "select", "set_cpu_capability", "status"]

NAMES = ("cuda", "triton", "cpu", "torch")
_CHOICES = {"cuda": ("cuda", "triton", "torch"), "cpu": ("cpu", "torch")}  # by device, the fastest first
_CPU_CAPABILITIES = ("portable", "avx2", "avx512")


class BackendError(RuntimeError):
    """The requested backend or instruction set is not available. The message says what to do."""


def status() -> dict[str, str | None]:
    """Return for each backend None if it is available, else the reason and what to do."""
    return {name: load(name) for name in NAMES}


# The result does not change within a process, so a compiled graph may have it as a constant.
@constant_when_compiled
def select(name: str, device: torch.device) -> str:
    """Return the backend for tensors on `device`: `name`, or for `auto` the fastest available.

    Raises:
        BackendError: the backend is unknown, not available, or does not support `device`.
    """
    return _select(name, device.type, device.index)


@functools.cache
def _select(name: str, device_type: str, index: int | None) -> str:
    choices = _CHOICES.get(device_type, ("torch",))
    if name == "auto":
        reasons: list[str] = []
        for backend in choices:
            reason = _reason(backend, index)
            if reason is None:
                break
            reasons.append(f"{backend}: {reason}")
        if reasons:
            slow = "the slower " if backend == "torch" else ""
            print(f"ops_dcnv3: using {slow}backend {backend!r} ({'; '.join(reasons)})", file=sys.stderr, flush=True)
        return backend
    if name not in NAMES:
        raise BackendError(f"unknown backend {name!r}; choose auto, {', '.join(NAMES)}")
    if name not in choices:
        raise BackendError(
            f"backend {name!r} does not support {device_type} tensors; choose auto or {', '.join(choices)}"
        )
    if reason := _reason(name, index):
        raise BackendError(f"backend {name!r} cannot run here: {reason}")
    return name


def _reason(backend: str, index: int | None) -> str | None:
    """Why a backend cannot run on a device, or None. A loaded CUDA library may lack code for one of the GPUs."""
    reason = load(backend)
    return _lacks_code(_cuda_targets, index or 0) if reason is None and backend == "cuda" else reason


def serves(names: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for `names` runs on a GPU: machine code of its generation and at most its number, or older PTX."""
    for name in names:
        number, bare = build.target_number(name), name.removesuffix("+PTX")
        if bare[-1] in "af":  # specific to one GPU (a) or one generation (f)
            if number == capability or (bare[-1] == "f" and number[0] == capability[0] and number <= capability):
                return True
        elif number <= capability and (number[0] == capability[0] or name.endswith("+PTX")):
            return True
    return False


def _lacks_code(targets: list[str], index: int) -> str | None:
    """Why a CUDA library built for `targets` cannot run on a GPU, or None."""
    capability = torch.cuda.get_device_capability(index)
    if serves(targets, capability):
        return None
    name, built = torch.cuda.get_device_name(index), ", ".join(targets) or "unknown GPUs"
    return (
        f"its library was built for {built}; {name} has compute capability {capability[0]}.{capability[1]}; "
        "set TORCH_CUDA_ARCH_LIST for all of your GPUs and rebuild it"
    )


@functools.cache
def load(name: str) -> str | None:
    """Load a backend, once per process. Return None, or why it is not available and what to do.

    Raises:
        BackendError: OPS_DCNV3_CPU_CAPABILITY is not an instruction set of this machine.
    """
    loaders = {"cpu": _load_cpu, "cuda": _load_cuda, "triton": _load_triton}
    return loaders[name]() if name in loaders else None


def _built_library(name: str) -> Path | None:
    """Return the library that setup.py put into this folder, if any."""
    found = [file for file in Path(__file__).parent.glob(f"{name}.*") if file.suffix in (".so", ".pyd", ".dylib")]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _load_cpu() -> str | None:
    library, reason = _built_library("_cpu"), None
    if library is not None and (reason := _load_library(library)):
        library = None  # built for another system: build for this one
    if library is None:
        try:
            library = build.cached_library()
        except build.BuildError as error:
            return f"{reason}; {error}" if reason else str(error)
        if reason := _load_library(library):
            return reason
    loaded = ctypes.CDLL(str(library))
    if not hasattr(loaded, "ops_dcnv3_set_cpu_capability"):
        return f"{library} is older than this package; delete it, or rebuild it (pip install .)"
    loaded.ops_dcnv3_cpu_capability.restype = ctypes.c_char_p
    wanted = os.environ.get("OPS_DCNV3_CPU_CAPABILITY")
    if wanted and not loaded.ops_dcnv3_set_cpu_capability(wanted.encode()):
        usable = [name for name in _CPU_CAPABILITIES if loaded.ops_dcnv3_set_cpu_capability(name.encode())]
        raise BackendError(
            f"OPS_DCNV3_CPU_CAPABILITY is {wanted!r}; this machine supports {', '.join(usable)}; "
            "set one of these, or unset it"
        )
    _cpu_library.append(loaded)
    return None


def _load_library(library: Path) -> str | None:
    """Load a library of kernels. Return None, or why that failed."""
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the library could not be loaded ({error}); rebuild it (pip install .)"
    return None


def _load_cuda() -> str | None:
    if os.environ.get("OPS_DCNV3_NO_CUDA") == "1":
        return "it is switched off; unset OPS_DCNV3_NO_CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    library = _built_library("_cuda")
    reason = _lacks_code(build.targets_of(library), torch.cuda.current_device()) if library else None
    if library is None or reason:
        try:
            library = build.cached_library("_cuda")
        except build.BuildError as error:
            return f"{reason}; {error}" if reason else str(error)
    if reason := _load_library(library):
        return reason
    _cuda_targets.extend(build.targets_of(library))
    return None


def _load_triton() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    # Triton compiles its launcher once, in C with Python's headers (on Windows it has its own compiler).
    if sys.platform != "win32":
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "triton needs a C compiler and found none; install gcc or clang"
        if not Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h").exists():
            return "triton needs Python's headers; install them (Debian, Ubuntu: apt install python3-dev)"
    try:
        importlib.import_module("ops_dcnv3.triton")
    except ImportError as error:
        return f"triton cannot be imported ({error}); run pip install triton"
    return None


_cpu_library: list[ctypes.CDLL] = []
_cuda_targets: list[str] = []


def cpu_capability() -> str | None:
    """Return the instruction set of the CPU kernels: `avx512`, `avx2` or `portable`; None if they are not available.

    Defaults to the best of this machine; the environment variable OPS_DCNV3_CPU_CAPABILITY changes it.
    """
    if load("cpu") is not None:
        return None
    return _cpu_library[0].ops_dcnv3_cpu_capability().decode()


def set_cpu_capability(name: str) -> bool:
    """Change the instruction set of the CPU kernels. Return whether this machine supports it."""
    return load("cpu") is None and bool(_cpu_library[0].ops_dcnv3_set_cpu_capability(name.encode()))
