"""Building the compiled kernels, ahead of time (setup.py) and just in time (first use of a backend).

Both ways run the same compiler commands: one per source file, since each instruction set has its own flags, and one to
link. The libraries use torch's stable ABI and no Python headers, so one file serves all Python and torch versions from
2.10 on. This module needs the standard library only; torch is imported where its headers are wanted.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = [
    "BuildError",
    "cached",
    "cached_library",
    "compile_library",
    "compile_sources",
    "compiled_here",
    "find_compiler",
    "headers",
    "sources",
]

CSRC = Path(__file__).resolve().parent / "csrc"
TORCH_TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI is used: 2.10
WINDOWS = sys.platform == "win32"
X86 = platform.machine().lower() in ("x86_64", "amd64")

_FLAGS = ["/O2", "/std:c++17", "/EHsc", "/MD"] if WINDOWS else ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
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


class BuildError(RuntimeError):
    """The kernels cannot be built. The message says why and what to do."""


def sources() -> list[Path]:
    """Return the files of the CPU library."""
    return compiled_here(sorted((CSRC / "cpu").glob("*.cpp")))


def compiled_here(files: list[Path]) -> list[Path]:
    """Return those of `files` that are for this kind of processor."""
    return files if X86 else [file for file in files if _capability(file) not in _FILE_FLAGS]


def _capability(source: Path) -> str:
    return source.stem.rpartition("_")[2]


def headers() -> list[Path]:
    """Return the headers of the CPU library."""
    return sorted([*CSRC.glob("*.h"), *(CSRC / "cpu").glob("*.h")])


def find_compiler() -> str:
    """Return the C++ compiler's path: `$CXX`, else the usual names."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["cl"] if WINDOWS else ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    if wanted:
        raise BuildError(f"the C++ compiler CXX={wanted} is not there; correct or unset CXX")
    how = "run from a Visual Studio developer prompt" if WINDOWS else "install one (Debian, Ubuntu: apt install g++)"
    raise BuildError(f"no C++ compiler was found; {how}")


def compile_library(target: Path, extra_flags: list[str] | None = None) -> None:
    """Compile and link the CPU library to `target`.

    Raises:
        BuildError: no compiler, no torch, or the compiler's first error.
    """
    include, library = _torch_folders()
    define, path = ("/D", "/I") if WINDOWS else ("-D", "-I")
    flags = [f"{define}TORCH_TARGET_VERSION={TORCH_TARGET}", f"{path}{include}", *(extra_flags or [])]
    link = ["/link", f"/LIBPATH:{library}", "torch_cpu.lib"] if WINDOWS else [f"-L{library}", "-ltorch_cpu"]
    compile_sources(target, sources(), flags, [*link, *(extra_flags or [])])


def compile_sources(target: Path, files: list[Path], flags: Sequence[str] = (), link: Sequence[str] = ()) -> None:
    """Compile `files`, each with the flags of its instruction set and `flags`, and link them to `target` with `link`.

    Raises:
        BuildError: no compiler, or the compiler's first error.
    """
    compiler = find_compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ops_dcnv3_") as folder:
        objects = {source: Path(folder) / f"{source.stem}.{'obj' if WINDOWS else 'o'}" for source in files}

        def compile_one(source: Path) -> None:
            output = [f"/Fo{objects[source]}"] if WINDOWS else ["-o", str(objects[source])]
            own = [*_FLAGS, *_FILE_FLAGS.get(_capability(source), []), *flags]
            _run([compiler, "/c" if WINDOWS else "-c", *own, str(source), *output])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        compiled = [str(file) for file in objects.values()]
        linked = Path(folder) / target.name
        if WINDOWS:
            _run([compiler, "/LD", *compiled, f"/Fe{linked}", *link])
        else:
            shared = "-dynamiclib" if sys.platform == "darwin" else "-shared"
            _run([compiler, shared, *compiled, "-o", str(linked), *link])
        # Under its final name only when whole: another process may be waiting to load it.
        staged = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy2(linked, staged)
        os.replace(staged, target)


def cached_library() -> Path:
    """Return the CPU library built for this torch, these sources and this compiler, building it if need be.

    Raises:
        BuildError: building is forbidden or failed.
    """
    import torch

    return cached("_cpu", "CPU kernels", [*sources(), *headers()], torch.__version__, compile_library)


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
                _say(f"building the {what} once with {compiler} (up to half a minute) ...")
                start = time.monotonic()
                compile_to(target)
                _say(f"built in {time.monotonic() - start:.0f} s: {target}")
    except OSError as error:
        raise BuildError(f"{error}; set OPS_DCNV3_CACHE to a folder that can be written") from error
    return target


def _torch_folders() -> tuple[Path, Path]:
    try:
        import torch
    except ImportError as error:
        raise BuildError("torch cannot be imported; install torch first") from error
    root = Path(torch.__file__).parent
    if not (root / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
        raise BuildError(f"torch {torch.__version__} has no stable ABI headers; install torch 2.10 or newer")
    return root / "include", root / "lib"


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode:
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        raise BuildError(f"{Path(command[0]).name} failed: {reason[:300]}; another compiler can be named with CXX")


def _key(compiler: str, files: list[Path], version: str) -> str:
    compiler_version = subprocess.run(
        [compiler] if WINDOWS else [compiler, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout
    digest = hashlib.sha256(repr((version, platform.machine(), compiler_version, _FLAGS, _FILE_FLAGS)).encode())
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
