"""Phases `sanitizer` and `ncu`: NVIDIA's tools on the torch-free program memory_check.cu. And the static counts."""

import csv
import glob
import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from .journal import Journal
from .plan import Deadline
from .process import command

__all__ = ["build_program", "count_instructions", "parse_ncu", "run_ncu", "run_sanitizer", "tool"]

HERE = Path(__file__).resolve().parent
_SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")
_SECTIONS += ("WarpStateStats", "SchedulerStats")
_METRICS = (
    "lts__t_sectors_op_red.sum,lts__t_sectors_op_atom.sum,lts__t_requests_op_red.sum,lts__t_sectors_op_read.sum,"
    "lts__t_sectors_op_write.sum,smsp__inst_executed.sum"
)


def tool(name: str) -> str | None:
    """Return the path of a tool of the toolkit or of Nsight Compute."""
    places = [f"/usr/local/cuda/bin/{name}", *sorted(glob.glob(f"/opt/nvidia/nsight-compute/*/{name}"), reverse=True)]
    return shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)


def build_program(work: Path, seconds: float) -> Path:
    """Compile memory_check.cu with the kernels, once for both phases.

    Raises:
        RuntimeError: the compiler's message.
    """
    program = work / "memory_check"
    if program.exists():
        return program
    from ops_dcnv3 import build  # imports torch

    toolkit = build.find_toolkit()
    csrc = HERE.parents[1] / "ops_dcnv3" / "csrc" / "cuda"
    partial = work / f"memory_check.{os.getpid()}"
    code, output = command(
        [
            *(str(toolkit.nvcc), "-std=c++17", "-O3", f"-arch=sm_{_capability().replace('.', '')}", "-lineinfo"),
            *(f"-I{csrc}", f"-I{HERE.parents[1] / 'tests' / 'ops'}"),
            *(str(HERE / "memory_check.cu"), str(csrc / "kernels.cu"), "-o", str(partial)),
        ],
        seconds,
    )
    if code != 0:
        raise RuntimeError(f"nvcc ended with {code}: {output[-1500:]}")
    os.replace(partial, program)
    return program


def _capability() -> str:
    """Compute capability of the GPU as in `9.0`, which is taken where there is none to ask."""
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "9.0"


def run_sanitizer(journal: Journal, deadline: Deadline, work: Path) -> None:
    """The program alone, then under memcheck and initcheck."""
    with journal.row("program", deadline, 3) as row:
        if row is not None:
            program = build_program(work, deadline.left)
            _record(row, [str(program)], deadline.left, journal)
    for check in ("memcheck", "initcheck"):
        with journal.row(check, deadline, 4) as row:
            if row is None:
                continue
            sanitizer = tool("compute-sanitizer")
            if sanitizer is None:
                raise FileNotFoundError("compute-sanitizer is not installed")
            program = build_program(work, deadline.left)
            arguments = [sanitizer, "--tool", check, "--error-exitcode", "9", "--print-limit", "20", str(program)]
            _record(row, arguments, deadline.left - 1, journal)


def _record(row: dict, arguments: list[str], seconds: float, journal: Journal) -> None:
    code, output = command(arguments, seconds)
    row.update(code=code, output=output[-3000:])
    if found := re.search(r"(\d+) runs$", output, re.MULTILINE):
        row["runs"] = int(found[1])
    if found := re.search(r"ERROR SUMMARY: (\d+) error", output):
        row["errors"] = int(found[1])
    if "not supported" in output:
        row.update(status="failed", error=f"refused: {_first_error(output)}")
    elif code == 9 or row.get("errors"):
        row.update(status="wrong", error=f"{row.get('errors', 'some')} errors were found: {_first_error(output)}")
    elif code is None:
        row.update(status="failed", error=f"ended after {seconds:.0f} s, its time limit")
    elif code:
        row.update(status="wrong" if len(arguments) == 1 else "failed", error=f"code {code}: {output.strip()[-500:]}")


def _first_error(output: str) -> str:
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    return " | ".join([line for line in lines if line and not line.startswith("COMPUTE-SANITIZER")][:4])[:400]


def run_ncu(journal: Journal, deadline: Deadline, work: Path) -> None:
    """Hardware counters of forward and backward, float16 and bfloat16, 64x56x56x64 on logits."""
    for dtype, number in (("float16", 0), ("bfloat16", 1)):
        with journal.row(dtype, deadline, 5) as row:
            if row is None:
                continue
            ncu = tool("ncu")
            if ncu is None:
                raise FileNotFoundError("ncu is not installed")
            program = build_program(work, deadline.left)
            arguments = [ncu, "--clock-control", "none", "--csv", "--page", "raw", "--kernel-name"]
            arguments += ["regex:forward|backward|grad|narrow", "--metrics", _METRICS]
            arguments += [part for section in _SECTIONS for part in ("--section", section)]
            start = time.time()
            code, output = command([*arguments, str(program), "profile", str(number)], deadline.left - 1)
            row.update(code=code, seconds_of_ncu=round(time.time() - start, 1), kernels=parse_ncu(output))
            if not row["kernels"]:
                row.update(status="failed", error=f"ncu gave no counters (code {code}): {output[-800:]}")


def parse_ncu(output: str) -> list[dict[str, Any]]:
    """Return one dictionary a kernel from what `ncu --csv --page raw` prints; units stand behind the names."""
    start = re.search(r'^"ID",', output, re.MULTILINE)
    if start is None:
        return []
    rows = list(csv.reader(io.StringIO(output[start.start() :])))
    names, units = rows[0], rows[1] if len(rows) > 1 else []
    kernels = []
    for row in rows[2:]:
        if len(row) == len(names):
            labels = [f"{name} [{unit}]" if unit else name for name, unit in zip(names, units)]
            kernels.append({label: _number(value) for label, value in zip(labels, row)})
    return kernels


def _number(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def count_instructions(work: Path) -> None:
    """Write `static.json`: registers, spills and instructions per element of the kernels for 3x3 windows."""
    import static_cuda

    kernels = [
        {
            "direction": kernel.direction,
            "dtype": kernel.dtype,
            "channels": kernel.vector,
            "points": kernel.points,
            "logits": kernel.logits,
            "registers": kernel.registers,
            "spills": kernel.spills,
            "per_element": round(kernel.per_element, 1),
        }
        for kernel in static_cuda.measure(_capability())
        if kernel.points
    ]
    partial = work / "static.partial"
    partial.write_text(json.dumps(kernels))
    os.replace(partial, work / "static.json")
