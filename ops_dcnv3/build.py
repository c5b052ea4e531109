"""Build the compiled kernels for CPU and CUDA, ahead of time (setup.py) or at first use of a backend.

Both run the same compiler commands: one per source file, since each instruction set has its own flags, and one to link.
The libraries use torch's stable ABI and no Python headers, so one file works with all Python versions and torch 2.10 or
newer. setup.py imports this module: it uses the standard library only, and torch for its headers.
"""

import hashlib
import importlib.util
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

__all__ = ["ARCHITECTURES", "BuildError", "Toolkit", "architectures", "cached_library", "compile_kernels"]
__all__ += ["compile_library", "find_compiler", "find_runtime", "find_toolkit", "sources", "targets_of"]

WINDOWS = sys.platform == "win32"
CSRC = Path(__file__).resolve().parent / "csrc"
# Turing, Ampere (A100, RTX 30), Ada, Hopper, Blackwell (B200, Thor, RTX 50): compute capabilities.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "11.0", "12.0")
TORCH_TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI is used: 2.10
X86 = platform.machine().lower() in ("x86_64", "amd64")

_FLAGS = ["/O2", "/std:c++17", "/EHsc", "/MD"] if WINDOWS else ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
_NVCC_FLAGS = ["-std=c++17", "-O3"]
# No -march=native: the library may run on another machine. The instruction set is chosen at run time.
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
# By the suffix of the source's name, after the underscore.
_FILE_FLAGS = {
    "avx2": ["/arch:AVX2"] if WINDOWS else _AVX2,
    "avx512": ["/arch:AVX512"] if WINDOWS else _AVX512,
}
_HINT = "; another compiler can be named with CXX"
_TARGETS = "ops_dcnv3 built for "  # in the CUDA library, before its architectures


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
    """Return the path of the C++ compiler: `$CXX`, else the usual names.

    Raises:
        BuildError: no compiler was found.
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
    """Return the toolkit of `CUDA_HOME` or `CUDA_PATH`, of the nvcc on the path, in `/usr/local/cuda`, or from pip.

    Raises:
        BuildError: no toolkit was found.
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
    # nvcc may be a link or a wrapper script, so ask it for its folder.
    plan = run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    root = re.search(r"TOP=(.*)", plan)
    version = re.search(r"release (\d+)\.(\d+)", run([nvcc, "--version"]))
    if root is None or version is None:
        raise BuildError(f"{nvcc} does not print the folder of its toolkit; set CUDA_HOME to a complete toolkit")
    return Toolkit(Path(root[1].strip()).resolve(), Path(nvcc), (int(version[1]), int(version[2])))


def find_runtime(toolkit: Toolkit) -> Path:
    """Return the shared CUDA runtime to link: that of the toolkit, else that of NVIDIA's Python packages.

    Raises:
        BuildError: no runtime was found.
    """
    # NVIDIA's Python packages have the library only with its full name, libcudart.so.13.
    for root in [toolkit.root, *_nvidia_packages()]:
        for pattern in ("lib*/libcudart.so", f"lib*/libcudart.so.{toolkit.version[0]}"):
            if found := next(root.glob(pattern), None):
                return found
    raise BuildError(f"{toolkit.root} has no libcudart.so; install the toolkit's runtime library")


def architectures(toolkit: Toolkit) -> list[str]:
    """Return the compute capabilities to compile for, as `8.0` or `9.0+PTX`; the highest always has PTX.

    Those of `TORCH_CUDA_ARCH_LIST`; else those of this machine's GPUs; else all of `ARCHITECTURES` that nvcc knows.

    Raises:
        BuildError: an invalid name, or GPUs that this nvcc does not support.
    """
    known = run([str(toolkit.nvcc), "--list-gpu-code"]).split()
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split()
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {name!r}; expected capabilities such as '8.0;9.0+PTX'")
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
    names = sorted(set(names), key=target_number)
    if not names[-1].endswith("+PTX"):
        names[-1] += "+PTX"  # for future GPUs
    return names


def target_number(name: str) -> tuple[int, int]:
    """Return the numbers of an architecture such as `9.0+PTX`."""
    return tuple(int(number) for number in re.match(r"(\d+)\.(\d)", name).groups())


def code_flags(names: list[str]) -> list[str]:
    """Return nvcc's flags for `architectures()`."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def sources(name: str = "_cpu") -> list[Path]:
    """Return the source files of a library, `_cpu` or `_cuda`, for this processor."""
    if name == "_cuda":
        return sorted(file for file in (CSRC / "cuda").iterdir() if file.suffix in (".cu", ".cpp"))
    files = sorted((CSRC / "cpu").glob("*.cpp"))
    return files if X86 else [file for file in files if _capability(file) not in _FILE_FLAGS]


def _capability(source: Path) -> str:
    return source.stem.rpartition("_")[2]


def headers(name: str = "_cpu") -> list[Path]:
    """Return the headers of a library."""
    return sorted([*CSRC.glob("*.h"), *(CSRC / name.strip("_")).glob("*.h"), *(CSRC / name.strip("_")).glob("*.cuh")])


def compile_library(
    target: Path, name: str = "_cpu", capabilities: Sequence[str] | None = None, extra_flags: Sequence[str] = ()
) -> None:
    """Compile and link a library to `target`: each source with the flags of its instruction set.

    Args:
        name: `_cpu` or `_cuda`.
        capabilities: of the CUDA library; defaults to `architectures()`.
        extra_flags: for the compiler and the linker, such as those of a sanitizer.

    Raises:
        BuildError: no compiler, no toolkit, no torch, versions that do not fit, or the compiler's first error.
    """
    compiler = find_compiler()
    include, library = _torch_folders()
    define, path = ("/D", "/I") if WINDOWS else ("-D", "-I")
    flags = [f"{define}TORCH_TARGET_VERSION={TORCH_TARGET}", f"{path}{include}", *extra_flags]
    link = ["/link", f"/LIBPATH:{library}", "torch_cpu.lib"] if WINDOWS else [f"-L{library}", "-ltorch_cpu"]
    if name == "_cuda":
        toolkit = _suitable_toolkit()
        chosen = list(capabilities or architectures(toolkit))
        flags.append(f'-DDCNV3_TARGETS="{_TARGETS}{" ".join(chosen)}"')
        nvcc = ["-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", "--split-compile=0"]
        nvcc += code_flags(chosen)
        # The shared runtime, which torch has already loaded: two copies would not share their state.
        link = [f"-L{library}", "-ltorch_cuda", "-ltorch_cpu", str(find_runtime(toolkit))]

    link += extra_flags
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ops_dcnv3_") as folder:
        objects = {file: Path(folder) / f"{file.stem}.{'obj' if WINDOWS else 'o'}" for file in sources(name)}

        def compile_one(source: Path) -> None:
            if source.suffix == ".cu":
                compile_kernels(toolkit, source, objects[source], "-c", *nvcc)
                return
            output = [f"/Fo{objects[source]}"] if WINDOWS else ["-o", str(objects[source])]
            own = [*_FLAGS, *_FILE_FLAGS.get(_capability(source), []), *flags]
            run([compiler, "/c" if WINDOWS else "-c", *own, str(source), *output], _HINT)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        compiled = [str(file) for file in objects.values()]
        linked = Path(folder) / target.name
        if WINDOWS:
            run([compiler, "/LD", *compiled, f"/Fe{linked}", *link], _HINT)
        else:
            shared = "-dynamiclib" if sys.platform == "darwin" else "-shared"
            run([compiler, shared, *compiled, "-o", str(linked), *link], _HINT)
        # Rename when complete: another process may be waiting to load it.
        staged = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(linked, staged)
        os.replace(staged, target)


def compile_kernels(toolkit: Toolkit, source: Path, output: Path, *flags: str) -> str:
    """Compile a file of CUDA kernels with nvcc's `flags`. Return the output of the compiler."""
    host = ["-ccbin", find_compiler()] if os.environ.get("CXX") else []
    command = [str(toolkit.nvcc), *_NVCC_FLAGS, *host, *flags, str(source), "-o", str(output)]
    return run(command)


def targets_of(library: Path) -> list[str]:
    """Return the architectures of a CUDA library, as `8.0` or `9.0+PTX`, without loading it."""
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(_TARGETS.encode() + rb"([0-9. af+PTX]+)", content)
        return found[1].decode().split() if found else []


def cached_library(name: str = "_cpu") -> Path:
    """Return a library built for this torch, these sources and these compilers; build it if it does not exist.

    The folder is `OPS_DCNV3_CACHE`; it defaults to the user's cache folder. Other processes (torchrun) wait for the
    first one. `OPS_DCNV3_NO_BUILD=1` disables building. The CUDA library is built for `TORCH_CUDA_ARCH_LIST`, which
    defaults to the GPUs of this machine.

    Raises:
        BuildError: building is disabled or failed.
    """
    import torch
    from filelock import FileLock  # torch requires it; setup.py does not need it

    version, what, chosen = torch.__version__, "CPU kernels", None
    if name == "_cuda":
        toolkit = _suitable_toolkit()
        chosen = architectures(toolkit)
        version, what = f"{version}, {toolkit.version}, {chosen}", f"CUDA kernels for {' '.join(chosen)}"
    if os.environ.get("OPS_DCNV3_NO_BUILD") == "1":
        raise BuildError("building is switched off; unset OPS_DCNV3_NO_BUILD or run pip install --no-build-isolation .")
    key = _key(find_compiler(), [*sources(name), *headers(name)], version)
    target = _cache_folder() / key / f"{name}.{'dll' if WINDOWS else 'so'}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):
            if not target.exists():
                _say(f"building the {what} once (up to a minute) ...")
                start = time.monotonic()
                compile_library(target, name, chosen)
                _say(f"built in {time.monotonic() - start:.0f} s: {target}")
    except OSError as error:
        raise BuildError(f"{error}; set OPS_DCNV3_CACHE to a folder that can be written") from error
    return target


def _suitable_toolkit() -> Toolkit:
    """Return a CUDA toolkit of the major version that torch was built with."""
    if WINDOWS:
        raise BuildError("the CUDA kernels are built on Linux only so far; use the triton or torch backend")
    import torch

    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch")
    toolkit = find_toolkit()
    if int(torch.version.cuda.split(".")[0]) != toolkit.version[0]:
        ours = ".".join(map(str, toolkit.version))
        raise BuildError(
            f"torch was built for CUDA {torch.version.cuda}, the toolkit in {toolkit.root} is {ours}; "
            f"set CUDA_HOME to a toolkit of the same major version"
        )
    return toolkit


def _torch_folders() -> tuple[Path, Path]:
    try:
        import torch
    except ImportError as error:
        raise BuildError("torch cannot be imported; install torch first") from error
    root = Path(torch.__file__).parent
    if not (root / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
        raise BuildError(f"torch {torch.__version__} has no stable ABI headers; install torch 2.10 or newer")
    return root / "include", root / "lib"


def _key(compiler: str, files: list[Path], version: str) -> str:
    compiler_version = subprocess.run(
        [compiler] if WINDOWS else [compiler, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout
    digest = hashlib.sha256(
        repr((version, platform.machine(), compiler_version, _FLAGS, _FILE_FLAGS, _NVCC_FLAGS)).encode()
    )
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    if folder := os.environ.get("OPS_DCNV3_CACHE"):
        return Path(folder)
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "ops_dcnv3"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ops_dcnv3"


def _say(message: str) -> None:
    print(f"ops_dcnv3: {message}", file=sys.stderr, flush=True)
