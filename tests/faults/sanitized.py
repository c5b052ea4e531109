"""Build the CPU kernels with the sanitizers of the compiler and run random calls on them."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["COMPILER", "run_operator_cases"]

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "ops_dcnv3" / "csrc"
COMPILER = shutil.which("g++")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def _build(vectors: bool) -> Path:
    """Compile the program; it stays in a temporary folder under a hash of its sources."""
    sources = [HERE / "operator_cases.cpp", CSRC / "cpu" / "kernel_portable.cpp"]
    flags = ["-std=c++17", "-Wall", "-Wextra", *SANITIZERS]
    # The wider instruction set and an optimizing compiler take a minute and more.
    flags += ["-O1", "-DVECTORS=1"] if vectors else ["-O0", "-DVECTORS=0"]
    digest = hashlib.sha256(repr(flags).encode())
    for file in sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp")) + sources:
        digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"dcnv3_sanitized_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"operator_cases_{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    flags.append(f"-I{CSRC}")  # not in the hash: another checkout of the same sources has the same program
    with tempfile.TemporaryDirectory(dir=folder) as work:
        objects = []
        if vectors:
            objects = [f"{work}/avx2.o"]
            command = [COMPILER, *flags, "-mavx2", "-mfma", "-mf16c", "-c", str(CSRC / "cpu/kernel_avx2.cpp")]
            subprocess.run([*command, "-o", objects[0]], check=True)
        subprocess.run([COMPILER, *flags, *map(str, sources), *objects, "-o", f"{work}/program"], check=True)
        os.replace(f"{work}/program", target)
    return target


def run_operator_cases(count: int, seed: int, *, vectors: bool) -> subprocess.CompletedProcess:
    """Run `count` random calls, forward and backward; `vectors` adds the AVX2 kernels, where there are any."""
    program = _build(vectors and platform.machine() in ("x86_64", "AMD64"))
    return subprocess.run([program, str(count), str(seed)], capture_output=True, text=True)
