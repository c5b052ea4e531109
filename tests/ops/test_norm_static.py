"""The LayerNorm kernels as nvcc makes them: every architecture, registers and spills. Nothing is run."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from test_cuda_static import OTHERS, needs_nvcc

from ops_dcnv3 import build, toolchain


class Kernel(NamedTuple):
    """One instantiation: `forward`, `backward` or `finish`; form, block and vector as the digits of its template."""

    name: str
    variant: str
    registers: int
    spills: int


@cache
def measure(capability: str) -> list[Kernel]:
    with TemporaryDirectory() as folder:
        flags = ("-cubin", f"-arch=sm_{capability.replace('.', '')}", "-Xptxas=-v")
        source, binary = build.CSRC / "cuda" / "norm.cu", Path(folder) / "norm.cubin"
        messages = build.compile_kernels(toolchain.find_toolkit(), source, binary, *flags)
    kernels = []
    for message in re.split(r"Compiling entry function '", messages)[1:]:
        name, *digits = re.match(
            r".*?(forward|backward|finish)_kernel(?:ILNS0_4FormE(\d)ELb(\d)ELb(\d)E)?", message
        ).groups()
        spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", message))
        registers = int(re.search(r"Used (\d+) registers", message)[1])
        kernels.append(Kernel(name, "".join(filter(None, digits)), registers, spills))
    return kernels


def check(kernels: list[Kernel]) -> None:
    # Four forms; rows in a warp, rows in a block, and rows in a block whose length is no multiple of 8.
    assert len(kernels) == 4 * 3 * 2 + 1
    assert [kernel for kernel in kernels if kernel.spills] == []
    # So many that a processor with 65536 of them holds three blocks of 256 threads (forward), or two (backward).
    most = {"forward": 80, "backward": 128, "finish": 32}
    assert [k for k in kernels if k.variant[1:] in ("", "01") and k.registers > most[k.name]] == []


@needs_nvcc
def test_no_kernel_spills_registers_on_hopper():
    check(measure("9.0"))


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills_registers_on_other_architectures():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(measure, OTHERS):
            check(kernels)
