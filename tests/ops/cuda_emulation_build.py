"""Builds the CUDA kernels with g++ against the emulation header, and calls them on CPU tensors."""

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
CUDA_SOURCES = HERE.parents[1] / "ops_dcnv3" / "csrc" / "cuda"
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
COMPILER = shutil.which("g++")


def build(source: str, *flags: str, shared: bool = False, libraries: Sequence[str] = ()) -> Path:
    """Compile a C++ file of this folder; the result stays in a temporary folder under a hash of its sources."""
    files = sorted([*CUDA_SOURCES.iterdir(), *CUDA_SOURCES.parent.glob("*.h"), *HERE.glob("*.cpp"), *HERE.glob("*.h")])
    command = repr([source, flags, shared, os.getuid()])
    for folder in ("tests", "tensorrt"):  # another checkout of the same sources has the same result
        command = command.replace(str(HERE.parents[1] / folder), folder)
    digest = hashlib.sha256(command.encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"dcnv3_cuda_emulation_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{Path(source).stem}_{digest.hexdigest()[:16]}{'.so' if shared else ''}"
    if not target.exists():
        partial = f"{target}.{os.getpid()}"
        command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command += [
            f"-I{CUDA_SOURCES}",
            f"-I{HERE}",
            *(["-shared", "-fPIC"] if shared else []),
            *flags,
            str(HERE / source),
            *libraries,
            "-o",
            partial,
        ]
        subprocess.run(command, check=True)
        os.replace(partial, target)
    return target


class Emulator:
    """The kernels as functions of tensors; `arch` chooses between vector (900) and scalar (800) atomics."""

    def __init__(self, arch: int = 900) -> None:
        path = build("emulated_dcnv3.cpp", "-O1", f"-D__CUDA_ARCH__={arch}", shared=True)
        self.library = ctypes.CDLL(str(path))
        for function in (self.library.emulated_forward, self.library.emulated_backward, self.library.emulated_narrow):
            function.restype = ctypes.c_char_p

    def forward(self, case, input, offset, mask, seed=0, max_threads=0x7FFFFF00):
        output = torch.full(case.output_shape, torch.nan, dtype=input.dtype)
        self._call(self.library.emulated_forward, case, seed, max_threads, input, offset, mask, output)
        return output

    def backward(self, case, grad_output, input, offset, mask, seed=0, max_threads=0x7FFFFF00):
        wide = torch.zeros(input.shape, dtype=torch.promote_types(input.dtype, torch.float32))
        grad_offset, grad_mask = torch.full_like(offset, torch.nan), torch.full_like(mask, torch.nan)
        tensors = (grad_output, input, offset, mask, wide, grad_offset, grad_mask)
        self._call(self.library.emulated_backward, case, seed, max_threads, *tensors)
        if wide.dtype == input.dtype:
            return wide, grad_offset, grad_mask
        grad_input = torch.full_like(input, torch.nan)
        self.narrow(wide, grad_input)
        return grad_input, grad_offset, grad_mask

    def narrow(self, wide, result):
        count = ctypes.c_int64(wide.numel())
        self.library.emulated_narrow(DTYPES[result.dtype], _pointer(wide), _pointer(result), count)

    def _call(self, function, case, seed, max_threads, *tensors):
        sizes = (ctypes.c_int64 * 15)(*case.sizes)
        scalars = (ctypes.c_double(case.offset_scale), ctypes.c_uint(seed), ctypes.c_int64(max_threads))
        reason = function(DTYPES[tensors[0].dtype], sizes, *scalars, *map(_pointer, tensors))
        if reason:
            raise RuntimeError(reason.decode())


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def sparse_zeros(*sizes: int) -> torch.Tensor:
    """Zeros that take memory only where they are touched."""
    count = torch.Size(sizes).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, 4 * count, flags=flags), dtype=torch.float32).view(sizes)
