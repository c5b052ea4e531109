"""Static figures of the CUDA kernels: registers, spills, instructions, from ptxas and the disassembly. No GPU needed.

Prints a Markdown table of the kernels for 3x3 windows and ends with code 1 if a budget is exceeded. What is counted is
what the compiler emitted: each of these kernels is straight-line code with its points unrolled, so an instruction is
issued at most once per warp, except in the reduction over the lanes of a group (one round for float16 at 16 channels).
A count says nothing about time: for that see benchmarks/gpu.py and docs/gpu.md.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from ops_dcnv3 import build  # noqa: E402

__all__ = ["BUDGETS", "Kernel", "disassembler", "measure", "over_budget", "table"]

_NAME = re.compile(
    r"dcnv3\d+(forward|backward|grad_input)_kernelI(6__half|13__nv_bfloat16|f|d)(?:Li(\d+)E)?Li(\d+)ELb([01])E"
)
_TYPES = {"6__half": "float16", "13__nv_bfloat16": "bfloat16", "f": "float32", "d": "float64"}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", re.MULTILINE)


class Code(NamedTuple):
    """What the compiler made of one kernel; `instructions` maps an opcode to its count."""

    registers: int
    spills: int  # bytes stored and loaded
    shared: int  # bytes
    instructions: dict[str, int]

    def count(self, pattern: str = "") -> int:
        """Return the number of instructions whose opcode begins with the regular expression."""
        return sum(number for opcode, number in self.instructions.items() if re.match(pattern, opcode))


class Kernel(NamedTuple):
    """One instantiation on one architecture. `points` 0: any window."""

    direction: str
    dtype: str
    vector: int  # channels per thread
    points: int
    logits: bool
    registers: int
    spills: int
    shared: int
    instructions: dict[str, int]

    count = Code.count

    @property
    def per_element(self) -> float:
        """Instructions per output element."""
        return self.count() / self.vector


class Budget(NamedTuple):
    """Upper limits of the float16 kernel for 3x3 windows and logits on sm_90, the one that models use."""

    instructions: int  # per output element; a loop's body counts once
    registers: int
    shared: int  # bytes
    wide_loads: int  # of 128 bits: four corners at nine points, and in backward the output's gradient


# The original CUDA extension: 1096 and 2190 instructions.
BUDGETS = {
    "forward": Budget(instructions=172, registers=80, shared=0, wide_loads=36),
    "backward": Budget(instructions=225, registers=72, shared=0, wide_loads=37),
    "grad_input": Budget(instructions=500, registers=168, shared=8 * 8 * 512, wide_loads=0),
}


def disassembler() -> str:
    """Return nvdisasm: of the path, the toolkit, or the triton package, which brings its own.

    Raises:
        build.BuildError: there is none.
    """
    folders = [None, str(build.find_toolkit().root / "bin")]
    if triton := importlib.util.find_spec("triton"):
        folders += [str(Path(folder) / "backends/nvidia/bin") for folder in triton.submodule_search_locations]
    for folder in folders:
        if found := shutil.which("nvdisasm", path=folder):
            return found
    raise build.BuildError("no nvdisasm was found; install the package nvidia-cuda-nvdisasm, or triton")


def compiled(source: str, capability: str) -> dict[str, Code]:
    """Compile a file of kernels for a compute capability such as `9.0`; return its kernels by symbol.

    Raises:
        build.BuildError: no toolkit, or the compiler's first error.
    """
    architecture = f"sm_{capability.replace('.', '')}"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernels.cubin"
        flags = ("-cubin", f"-arch={architecture}", "-Xptxas=-v")
        messages = build.compile_kernels(build.find_toolkit(), build.CSRC / "cuda" / source, binary, *flags)
        listing = subprocess.run([disassembler(), "-c", binary], capture_output=True, text=True, check=True).stdout
    opcodes = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        found = Counter(_INSTRUCTION.findall(section))
        found.pop("NOP", None)  # padding behind the end
        opcodes[section[: section.index(",")]] = dict(found)
    kernels = {}
    for message in re.split(r"Compiling entry function '", messages)[1:]:
        symbol = message[: message.index("'")]
        registers = int(re.search(r"Used (\d+) registers", message)[1])
        spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", message))
        shared = re.search(r"(\d+) bytes smem", message)
        kernels[symbol] = Code(registers, spills, int(shared[1]) if shared else 0, opcodes[symbol])
    return kernels


def measure(capability: str) -> list[Kernel]:
    """Compile DCNv3's kernels for a compute capability such as `9.0` and return their figures."""
    kernels = []
    for symbol, code in compiled("kernels.cu", capability).items():
        if found := _NAME.search(symbol):
            direction, dtype, vector, points, logits = found.groups()
            kernels.append(Kernel(direction, _TYPES[dtype], int(vector or 4), int(points), logits == "1", *code))
    return kernels


def over_budget(kernels: list[Kernel]) -> list[str]:
    """Return what exceeds the budgets, one line each, of kernels measured for sm_90."""
    complaints = [f"{kernel[:5]} spills {kernel.spills} bytes" for kernel in kernels if kernel.spills]
    for kernel in kernels:
        if (kernel.dtype, kernel.points, kernel.logits) != ("float16", 9, True):
            continue
        budget = BUDGETS[kernel.direction]
        name = f"{kernel.direction}, float16, 3x3:"
        if kernel.per_element > budget.instructions:
            complaints.append(f"{name} {kernel.per_element:.1f} instructions per element, limit {budget.instructions}")
        if kernel.registers > budget.registers:
            complaints.append(f"{name} {kernel.registers} registers, limit {budget.registers}")
        if kernel.shared > budget.shared or kernel.count(r"ATOMS"):
            complaints.append(f"{name} {kernel.shared} bytes of shared memory, limit {budget.shared}, no atomics")
        vectors, atomics = kernel.count(r"RED\w*\..*F32x4"), kernel.count(r"RED|ATOM")
        if vectors != atomics or bool(vectors) != (kernel.direction == "grad_input"):
            complaints.append(f"{name} {vectors} vector atomics and {atomics - vectors} others per thread")
        # Offsets and mask: one load each per point.
        wide, loads = kernel.count(r"LDG.*\.128"), kernel.count(r"LDG")
        if wide != budget.wide_loads or (wide and loads != wide + 18):
            complaints.append(f"{name} {wide} loads of 128 bits and {loads - wide} others")
    return complaints


def table(kernels: list[Kernel]) -> str:
    """Return the Markdown table of the kernels for 3x3 windows."""
    lines = [
        "| kernel | type | points | mask | channels per thread | registers | spills | instructions per element |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kernel in sorted(kernels, key=lambda k: (k.direction != "forward", k.dtype, -k.points, k.logits)):
        if kernel.points:
            cells = [kernel.direction, kernel.dtype, kernel.points, "logits" if kernel.logits else "weights"]
            cells += [kernel.vector, kernel.registers, kernel.spills, f"{kernel.per_element:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="*", default=["9.0"], metavar="X.Y", help="compute capabilities (default 9.0)")
    arguments = parser.parse_args()
    complaints = []
    for capability in arguments.arch:
        kernels = measure(capability)
        print(f"\nsm_{capability.replace('.', '')}, {len(kernels)} kernels\n\n{table(kernels)}")
        if capability == "9.0":
            complaints += over_budget(kernels)
        else:
            complaints += [f"sm {capability}: {k[:5]} spills {k.spills} bytes" for k in kernels if k.spills]
    print("\nWithin all budgets." if not complaints else "\n" + "\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
