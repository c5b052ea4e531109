"""Building the CUDA kernels with nvcc: one command for the kernels, one for the binding, one to link.

No GPU is needed to build. The binding uses torch's stable ABI and neither CUDA nor Python headers. This module needs
the standard library only, so that setup.py can use it; torch is imported where its folders are wanted.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ARCHITECTURES",
    "CudaBuildError",
    "Toolkit",
    "architectures",
    "compile_kernels",
    "compile_library",
    "find_toolkit",
    "sources",
]

CSRC = Path(__file__).resolve().parent / "csrc" / "cuda"
TORCH_TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI is used: 2.10
# Turing, Ampere (A100, RTX 30), Ada, Hopper, Blackwell (B200, RTX 50): compute capabilities.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


class CudaBuildError(RuntimeError):
    """The CUDA kernels cannot be built. The message says why and what to do."""


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, its compiler, its version such as (13, 0)."""

    root: Path
    nvcc: Path
    version: tuple[int, int]


def sources() -> list[Path]:
    """Return all files that the CUDA library is made of."""
    return sorted(file for file in CSRC.iterdir() if not file.name.startswith("cuda_emulation"))


def find_toolkit() -> Toolkit:
    """Return the toolkit of `CUDA_HOME` or `CUDA_PATH`, of the nvcc on the path, or in the usual place.

    Raises:
        CudaBuildError: there is none.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in homes:
        if not shutil.which("nvcc", path=str(Path(home) / "bin")):
            raise CudaBuildError(f"{home}/bin has no nvcc; correct or unset CUDA_HOME")
    candidates = [shutil.which("nvcc", path=str(Path(home) / "bin")) for home in homes]
    candidates += [shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]
    nvcc = next((path for path in candidates if path), None)
    if nvcc is None:
        raise CudaBuildError("no CUDA toolkit was found; install one that has nvcc, or set CUDA_HOME to its folder")
    # nvcc may be a link or a wrapper script: it knows its own folder best.
    plan = _run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    root = re.search(r"TOP=(.*)", plan)
    version = re.search(r"release (\d+)\.(\d+)", _run([nvcc, "--version"]))
    if root is None or version is None:
        raise CudaBuildError(f"{nvcc} does not say where its toolkit is; set CUDA_HOME to a complete toolkit")
    return Toolkit(Path(root[1].strip()).resolve(), Path(nvcc), (int(version[1]), int(version[2])))


def architectures(toolkit: Toolkit) -> list[str]:
    """Return the compute capabilities to compile for, as `8.0` or `9.0+PTX`.

    Those of `TORCH_CUDA_ARCH_LIST`; else those of this machine's GPUs; else all of `ARCHITECTURES` that nvcc knows, the
    last one with PTX for GPUs to come.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split()
    if wanted:
        for name in wanted:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
                raise CudaBuildError(f"TORCH_CUDA_ARCH_LIST has {name!r}; name capabilities as in '8.0;9.0+PTX'")
        return wanted
    import torch

    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        return sorted({"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices})
    known = _run([str(toolkit.nvcc), "--list-gpu-code"]).split()
    names = [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
    return [*names[:-1], f"{names[-1]}+PTX"]


def compile_kernels(toolkit: Toolkit, output: Path, *flags: str) -> str:
    """Compile the kernels alone; `flags` say for what and into what. Return what the compiler printed."""
    command = [str(toolkit.nvcc), "-std=c++17", "-O3", *flags, str(CSRC / "kernels.cu"), "-o", str(output)]
    return _run(command)


def compile_library(target: Path, capabilities: Sequence[str] | None = None) -> None:
    """Compile and link the CUDA library to `target`, for `architectures()` unless told for which.

    Raises:
        CudaBuildError: no toolkit, no torch with CUDA, versions that do not fit, or the compiler's first error.
    """
    if os.name == "nt":
        raise CudaBuildError("the CUDA kernels are built on Linux only so far; use the triton or torch backend")
    toolkit = find_toolkit()
    include, library = _torch_folders(toolkit)
    codes = []
    for name in capabilities or architectures(toolkit):
        number = name.removesuffix("+PTX").replace(".", "")
        codes.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            codes.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "c++"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ops_dcnv3_cuda_") as folder:
        kernels, binding, linked = (Path(folder) / name for name in ("kernels.o", "binding.o", target.name))
        compile_kernels(toolkit, kernels, "-c", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", *codes)
        flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        _run([compiler, "-c", *flags, f"-I{include}", str(CSRC / "binding.cpp"), "-o", str(binding)])
        # The shared runtime, which torch has loaded already: two copies would not share their state.
        runtime = next((path for path in toolkit.root.glob("lib*/libcudart.so")), None)
        if runtime is None:
            raise CudaBuildError(f"{toolkit.root} has no libcudart.so; install the toolkit's runtime library")
        libraries = [f"-L{library}", "-ltorch_cuda", "-ltorch_cpu", f"-L{runtime.parent}", "-lcudart"]
        _run([compiler, "-shared", str(kernels), str(binding), "-o", str(linked), *libraries])
        # Under its final name only when whole: another process may be waiting to load it.
        staged = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(linked, staged)
        os.replace(staged, target)


def _torch_folders(toolkit: Toolkit) -> tuple[Path, Path]:
    try:
        import torch
    except ImportError as error:
        raise CudaBuildError("torch cannot be imported; install torch first") from error
    if torch.version.cuda is None:
        raise CudaBuildError(f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch")
    if int(torch.version.cuda.split(".")[0]) != toolkit.version[0]:
        ours = ".".join(map(str, toolkit.version))
        raise CudaBuildError(
            f"torch was built for CUDA {torch.version.cuda}, the toolkit in {toolkit.root} is {ours}; "
            f"set CUDA_HOME to a toolkit of the same major version"
        )
    root = Path(torch.__file__).parent
    if not (root / "include" / "torch" / "csrc" / "stable" / "accelerator.h").exists():
        raise CudaBuildError(f"torch {torch.__version__} has no stable ABI headers; install torch 2.10 or newer")
    return root / "include", root / "lib"


def _run(command: list[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise CudaBuildError(f"{Path(command[0]).name} failed: {reason[:300]}")
    return result.stdout
