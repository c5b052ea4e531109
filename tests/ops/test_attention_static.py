"""The attention kernels as nvcc makes them: registers, spills and instruction counts. Nothing is run."""

import re
import subprocess
from functools import cache
from typing import NamedTuple

import pytest
from test_cuda_static import OTHERS, missing, static_cuda

from ops_dcnv3 import build, toolchain

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"CUDA code cannot be compiled here: {missing()}")
KERNEL = re.compile(r"attention_(forward|backward)_kernelI(6__half|13__nv_bfloat16|f|d)Li(\d+)ELi(\d+)E")


class Kernel(NamedTuple):
    registers: int
    spills: int
    shared: int
    opcodes: list[str]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, opcode)) for opcode in self.opcodes)


@cache
def measure(capability: str, folder) -> dict[tuple[str, ...], Kernel]:
    """Compile for one architecture: (direction, type, vector, step or chunks) to the kernel's figures."""
    binary = folder / f"{capability}.cubin"
    command = [toolchain.find_toolkit().nvcc, "-std=c++17", "-O3", "-cubin", "-Xptxas=-v", "-o", binary]
    command += [f"-arch=sm_{capability.replace('.', '')}", build.CSRC / "cuda" / "attention.cu"]
    compiled = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "warning" not in compiled.stderr
    listing = subprocess.run(
        [static_cuda.disassembler(), "-c", binary], capture_output=True, text=True, check=True
    ).stdout
    opcodes = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        found = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", section, flags=re.MULTILINE
        )
        opcodes[section[: section.index(",")]] = [opcode for opcode in found if opcode != "NOP"]
    kernels = {}
    for message in re.split(r"Compiling entry function '", compiled.stderr)[1:]:
        symbol = message[: message.index("'")]
        if found := KERNEL.search(symbol):
            registers = int(re.search(r"Used (\d+) registers", message)[1])
            spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", message))
            shared = re.search(r"(\d+) bytes smem", message)
            kernels[found.groups()] = Kernel(registers, spills, int(shared[1]) if shared else 0, opcodes[symbol])
    return kernels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("attention")


@pytest.mark.parametrize("capability", ["9.0", *OTHERS])
def test_no_kernel_spills_registers_or_uses_shared_memory(capability, folder):
    kernels = measure(capability, folder)
    # Forward: 13 vector sizes over the types, four points at once for three of them. Backward: no 8 channels of a half
    # type, and compile-time chunks for three types.
    assert len([key for key in kernels if key[0] == "forward"]) == 13 + 3
    assert len([key for key in kernels if key[0] == "backward"]) == 11 + 3
    assert {key: kernel for key, kernel in kernels.items() if kernel.spills or kernel.shared} == {}


def test_half_precision_kernels_stay_within_the_static_budgets_on_hopper(folder):
    # Found with nvcc 13.0: 661 and 585 instructions, 64 and 72 registers. The loop over four points of a level takes
    # 506, over one point in backward 290.
    kernels = measure("9.0", folder)
    for name in ("6__half", "13__nv_bfloat16"):
        forward, backward = kernels["forward", name, "8", "4"], kernels["backward", name, "4", "2"]
        assert len(forward.opcodes) <= 700 and forward.registers <= 64
        assert len(backward.opcodes) <= 620 and backward.registers <= 80
        # The corners of four points and their locations are 16-byte loads; then the weights, and height and width.
        assert forward.count(r"LDG.*\.128") == 16 + 1
        assert forward.count(r"LDG") == 17 + 3
        # Each corner receives its two chunks as vector additions.
        assert backward.count(r"RED\w*\..*F32x4") == backward.count(r"RED|ATOM") == 8
