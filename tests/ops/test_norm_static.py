"""The LayerNorm kernels as nvcc makes them: every architecture, registers and spills. Nothing is run."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_cuda_static import OTHERS, needs_nvcc, static_cuda

KERNEL = re.compile(r"(forward|backward|finish)_kernel(?:ILNS0_4FormE\dELb(\d)E)?")


def check(capability: str) -> None:
    kernels = static_cuda.compiled("norm.cu", capability)
    # Four forms; rows in a warp and rows in a block.
    assert len(kernels) == 4 * 2 * 2 + 1
    assert [symbol for symbol, code in kernels.items() if code.spills] == []
    # So many that a processor with 65536 of them holds three blocks of 256 threads (forward), or two (backward).
    most = {"forward": 80, "backward": 128, "finish": 32}
    for symbol, code in kernels.items():
        name, is_block = KERNEL.search(symbol).groups()
        assert is_block == "1" or code.registers <= most[name], symbol


@needs_nvcc
def test_no_kernel_spills_registers_on_hopper():
    check("9.0")


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills_registers_on_other_architectures():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check, OTHERS))
