"""Building the compiled kernels, ahead of time (setup.py) and at first use of a backend: one builder for CPU and CUDA.

Both ways run the same compiler commands: one per source file, since each instruction set has its own flags, and one to
link. The libraries use torch's stable ABI and no Python headers, so one file serves all Python and torch versions from
2.10 on. This module needs the standard library only; torch is imported where its headers are wanted.
"""

import contextlib
import hashlib
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import toolchain
from .toolchain import WINDOWS, BuildError, find_compiler

__all__ = [
    "BuildError",
    "cached",
    "cached_library",
    "compile_kernels",
    "compile_library",
    "compile_sources",
    "compiled_here",
    "find_compiler",
    "headers",
    "sources",
    "targets_of",
]

CSRC = Path(__file__).resolve().parent / "csrc"
TORCH_TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI is used: 2.10
X86 = platform.machine().lower() in ("x86_64", "amd64")

_FLAGS = ["/O2", "/std:c++17", "/EHsc", "/MD"] if WINDOWS else ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
_NVCC_FLAGS = ["-std=c++17", "-O3"]
# Never -march=native: what is built here may run elsewhere. The instruction set is chosen at run time.
# By the end of a source's name, after the underscore.
_FILE_FLAGS = {
    "avx2": ["/arch:AVX2"] if WINDOWS else ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["/arch:AVX512"]
    if WINDOWS
    else [
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ],
}
_HINT = "; another compiler can be named with CXX"
_TARGETS = "ops_dcnv3 built for "  # in the CUDA library, before the architectures that it has code for


def sources(name: str = "_cpu") -> list[Path]:
    """Return the files that are compiled for a library, `_cpu` or `_cuda`."""
    if name == "_cuda":
        return sorted(file for file in (CSRC / "cuda").iterdir() if file.suffix in (".cu", ".cpp"))
    return compiled_here(sorted((CSRC / "cpu").glob("*.cpp")))


def compiled_here(files: list[Path]) -> list[Path]:
    """Return those of `files` that are for this kind of processor."""
    return files if X86 else [file for file in files if _capability(file) not in _FILE_FLAGS]


def _capability(source: Path) -> str:
    return source.stem.rpartition("_")[2]


def headers(name: str = "_cpu") -> list[Path]:
    """Return the headers of a library."""
    return sorted([*CSRC.glob("*.h"), *(CSRC / name.strip("_")).glob("*.h"), *(CSRC / name.strip("_")).glob("*.cuh")])


def compile_library(
    target: Path, name: str = "_cpu", extra_flags: Sequence[str] = (), capabilities: Sequence[str] | None = None
) -> None:
    """Compile and link a library to `target`.

    Args:
        name: `_cpu` or `_cuda`.
        extra_flags: for the compiler and the linker.
        capabilities: of the CUDA library; defaults to `toolchain.architectures()`.

    Raises:
        BuildError: no compiler, no toolkit, no torch, versions that do not fit, or the compiler's first error.
    """
    include, library = _torch_folders()
    define, path = ("/D", "/I") if WINDOWS else ("-D", "-I")
    flags = [f"{define}TORCH_TARGET_VERSION={TORCH_TARGET}", f"{path}{include}", *extra_flags]
    if name == "_cpu":
        link = ["/link", f"/LIBPATH:{library}", "torch_cpu.lib"] if WINDOWS else [f"-L{library}", "-ltorch_cpu"]
        return compile_sources(target, sources(), flags, [*link, *extra_flags])
    toolkit = _suitable_toolkit()
    chosen = list(capabilities or toolchain.architectures(toolkit))
    flags.append(f'-DDCNV3_TARGETS="{_TARGETS}{" ".join(chosen)}"')
    nvcc = ["-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0", "--split-compile=0", *toolchain.code_flags(chosen)]
    # The shared runtime, which torch has loaded already: two copies would not share their state.
    link = [f"-L{library}", "-ltorch_cuda", "-ltorch_cpu", str(toolchain.find_runtime(toolkit)), *extra_flags]
    compile_sources(target, sources("_cuda"), flags, link, lambda *files: compile_kernels(toolkit, *files, "-c", *nvcc))


def compile_kernels(toolkit: toolchain.Toolkit, source: Path, output: Path, *flags: str) -> str:
    """Compile a file of CUDA kernels; `flags` say for what and into what. Return what the compiler printed."""
    host = ["-ccbin", find_compiler()] if os.environ.get("CXX") else []
    # Headers of toolkits that are Python packages lie beside nvcc, which knows no other place.
    command = [str(toolkit.nvcc), *_NVCC_FLAGS, *host, *flags, str(source), "-o", str(output)]
    return toolchain.run(command)


def targets_of(library: Path) -> list[str]:
    """Return the architectures that a CUDA library has code for, as `8.0` or `9.0+PTX`, without loading it."""
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(_TARGETS.encode() + rb"([0-9. af+PTX]+)", content)
        return found[1].decode().split() if found else []


def compile_sources(
    target: Path,
    files: list[Path],
    flags: Sequence[str] = (),
    link: Sequence[str] = (),
    compile_cuda: Callable[[Path, Path], object] | None = None,
) -> None:
    """Compile `files`, each with the flags of its instruction set and `flags`, and link them to `target` with `link`.

    Files of CUDA kernels are left to `compile_cuda(source, object)`.

    Raises:
        BuildError: no compiler, or the compiler's first error.
    """
    compiler = find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ops_dcnv3_") as folder:
        objects = {source: Path(folder) / f"{source.stem}.{'obj' if WINDOWS else 'o'}" for source in files}

        def compile_one(source: Path) -> None:
            if source.suffix == ".cu":
                compile_cuda(source, objects[source])
                return
            output = [f"/Fo{objects[source]}"] if WINDOWS else ["-o", str(objects[source])]
            own = [*_FLAGS, *_FILE_FLAGS.get(_capability(source), []), *flags]
            toolchain.run([compiler, "/c" if WINDOWS else "-c", *own, str(source), *output], _HINT)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        compiled = [str(file) for file in objects.values()]
        linked = Path(folder) / target.name
        if WINDOWS:
            toolchain.run([compiler, "/LD", *compiled, f"/Fe{linked}", *link], _HINT)
        else:
            shared = "-dynamiclib" if sys.platform == "darwin" else "-shared"
            toolchain.run([compiler, shared, *compiled, "-o", str(linked), *link], _HINT)
        # Under its final name only when whole: another process may be waiting to load it.
        staged = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(linked, staged)
        os.replace(staged, target)


def cached_library(name: str = "_cpu") -> Path:
    """Return a library built for this torch, these sources and these compilers, building it if need be.

    The CUDA library is built for this machine's GPUs, or `TORCH_CUDA_ARCH_LIST`.

    Raises:
        BuildError: building is forbidden or failed.
    """
    import torch

    version, what = torch.__version__, "CPU kernels"
    if name == "_cuda":
        toolkit = _suitable_toolkit()
        chosen = toolchain.architectures(toolkit)
        version, what = f"{version}, {toolkit.version}, {chosen}", f"CUDA kernels for {' '.join(chosen)}"
        return cached(name, what, _files(name), version, lambda target: compile_library(target, name, (), chosen))
    return cached(name, what, _files(name), version, compile_library)


def _files(name: str) -> list[Path]:
    return [*sources(name), *headers(name)]


def cached(name: str, what: str, files: list[Path], version: str, compile_to: Callable[[Path], None]) -> Path:
    """Return the library `name` made of `files`, building it with `compile_to` if need be.

    It lies in a folder of the user (`OPS_DCNV3_CACHE`, else the system's cache folder). Several processes that ask at
    once (torchrun) wait for the first. `OPS_DCNV3_NO_BUILD=1` forbids all of this.

    Args:
        what: the contents, for the progress line.
        version: of what the library is built against, if anything; part of its key.

    Raises:
        BuildError: building is forbidden or failed.
    """
    if os.environ.get("OPS_DCNV3_NO_BUILD") == "1":
        raise BuildError("building is switched off; unset OPS_DCNV3_NO_BUILD or run pip install --no-build-isolation .")
    compiler = find_compiler()
    target = _cache_folder() / _key(compiler, files, version) / f"{name}.{'dll' if WINDOWS else 'so'}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent / "lock"):
            if not target.exists():
                _say(f"building the {what} once (up to a minute) ...")
                start = time.monotonic()
                compile_to(target)
                _say(f"built in {time.monotonic() - start:.0f} s: {target}")
    except OSError as error:
        raise BuildError(f"{error}; set OPS_DCNV3_CACHE to a folder that can be written") from error
    return target


def _suitable_toolkit() -> toolchain.Toolkit:
    """Return a CUDA toolkit of the major version that torch was built with."""
    if WINDOWS:
        raise BuildError("the CUDA kernels are built on Linux only so far; use the triton or torch backend")
    import torch

    if torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch")
    toolkit = toolchain.find_toolkit()
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


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it even if this process dies."""
    with open(path, "a+") as file:
        if WINDOWS:
            import msvcrt

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                    break
                except OSError:
                    continue
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _say(message: str) -> None:
    print(f"ops_dcnv3: {message}", file=sys.stderr, flush=True)
