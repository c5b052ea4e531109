"""The compilers of the kernels: the C++ compiler, and the CUDA toolkit with the architectures to compile for.

Standard library only, so that setup.py can use it; torch is imported where its version or the machine's GPUs matter.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "WINDOWS", "BuildError", "Toolkit", "architectures", "code_flags", "find_compiler"]
__all__ += ["find_runtime", "find_toolkit", "run", "serves"]

WINDOWS = sys.platform == "win32"
# Turing, Ampere (A100, RTX 30), Ada, Hopper, Blackwell (B200, Thor, RTX 50): compute capabilities.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0")


class BuildError(RuntimeError):
    """The kernels cannot be built. The message says why and what to do."""


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, its compiler, its version such as (13, 0)."""

    root: Path
    nvcc: Path
    version: tuple[int, int]


def run(command: list[str], hint: str = "") -> str:
    """Run a compiler and return what it printed.

    Raises:
        BuildError: it failed; the message has its first error, and `hint`.
    """
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise BuildError(f"{Path(command[0]).name} failed: {reason[:300]}{hint}")
    return result.stdout


def find_compiler() -> str:
    """Return the C++ compiler's path: `$CXX`, else the usual names.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["cl"] if WINDOWS else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    if wanted:
        raise BuildError(f"the C++ compiler CXX={wanted} is not there; correct or unset CXX")
    how = "run from a Visual Studio developer prompt" if WINDOWS else "install one (Debian, Ubuntu: apt install g++)"
    raise BuildError(f"no C++ compiler was found; {how}")


def _nvidia_packages() -> list[Path]:
    """Return the folders of NVIDIA's Python packages, such as `site-packages/nvidia/cu13`."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [folder for place in places or [] for folder in sorted(Path(place).iterdir()) if folder.is_dir()]


def find_toolkit() -> Toolkit:
    """Return the toolkit of `CUDA_HOME` or `CUDA_PATH`, of the nvcc on the path, in the usual place, or from pip.

    Raises:
        BuildError: there is none.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for home in homes:
        if not shutil.which("nvcc", path=str(Path(home) / "bin")):
            raise BuildError(f"{home}/bin has no nvcc; correct or unset CUDA_HOME")
    places = [*homes, None, "/usr/local/cuda", *map(str, _nvidia_packages())]
    found = (shutil.which("nvcc", path=str(Path(place) / "bin") if place else None) for place in places)
    nvcc = next(filter(None, found), None)
    if nvcc is None:
        raise BuildError(
            "no CUDA toolkit was found; install one that has nvcc (pip's packages will do, see docs/install.md), "
            "or set CUDA_HOME to its folder"
        )
    # nvcc may be a link or a wrapper script: it knows its own folder best.
    plan = run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    root = re.search(r"TOP=(.*)", plan)
    version = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"]))
    if root is None or version is None:
        raise BuildError(f"{nvcc} does not say where its toolkit is; set CUDA_HOME to a complete toolkit")
    return Toolkit(Path(root[1].strip()).resolve(), Path(nvcc), (int(version[1]), int(version[2])))


def find_runtime(toolkit: Toolkit) -> Path:
    """Return the shared CUDA runtime to link: the one that torch has loaded, or its twin in the toolkit.

    Raises:
        BuildError: there is none.
    """
    # NVIDIA's Python packages have the library under its full name alone, libcudart.so.13.
    for root in [toolkit.root, *_nvidia_packages()]:
        for pattern in ("lib*/libcudart.so", f"lib*/libcudart.so.{toolkit.version[0]}"):
            if found := next(root.glob(pattern), None):
                return found
    raise BuildError(f"{toolkit.root} has no libcudart.so; install the toolkit's runtime library")


def architectures(toolkit: Toolkit) -> list[str]:
    """Return the compute capabilities to compile for, as `8.0` or `9.0+PTX`; the highest always has PTX.

    Those of `TORCH_CUDA_ARCH_LIST`; else those of this machine's GPUs; else all of `ARCHITECTURES` that nvcc knows.

    Raises:
        BuildError: a name that is none, or GPUs that this nvcc does not know.
    """
    known = run([str(toolkit.nvcc), "--list-gpu-code"]).split()
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split()
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {name!r}; name capabilities as in '8.0;9.0+PTX'")
    if not names:
        import torch

        if torch.cuda.is_available():
            devices = range(torch.cuda.device_count())
            names = ["{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices]
            unknown = [name for name in names if f"sm_{name.replace('.', '')}" not in known]
            names = [name for name in names if name not in unknown]
            if not names:
                raise BuildError(
                    f"nvcc {'.'.join(map(str, toolkit.version))} does not know compute capability {unknown[0]}; "
                    "install a toolkit that does, or set TORCH_CUDA_ARCH_LIST"
                )
        else:
            names = [name for name in ARCHITECTURES if f"sm_{name.replace('.', '')}" in known]
    names = sorted(set(names), key=_number)
    if not names[-1].endswith("+PTX"):
        names[-1] += "+PTX"  # for GPUs to come
    return names


def _number(name: str) -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d)", name).groups()
    return int(major), int(minor)


def code_flags(names: list[str]) -> list[str]:
    """Return nvcc's flags for `architectures()`."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def serves(names: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for `names` runs on a GPU: machine code of its generation and at most its number, or older PTX."""
    for name in names:
        number, bare = _number(name), name.removesuffix("+PTX")
        if bare[-1] in "af":  # features of one GPU (a) or one generation (f)
            if number == capability or (bare[-1] == "f" and number[0] == capability[0] and number <= capability):
                return True
        elif number <= capability and (number[0] == capability[0] or name.endswith("+PTX")):
            return True
    return False
