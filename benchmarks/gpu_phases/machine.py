"""Phase `build`: the CUDA library for this GPU, and the facts about the machine that all results rest on."""

import platform
import shutil
import subprocess
import time

import torch

from ops_dcnv3 import backends

from .journal import Journal
from .plan import Deadline
from .timing import device_facts

__all__ = ["run"]

_QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit,"
    "clocks_event_reasons.active"
)


def run(journal: Journal, deadline: Deadline, device: torch.device) -> None:
    """Build, choose, measure the two ceilings. Only reads the card's settings."""
    journal.note(
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        python=platform.python_version(),
        system=platform.platform(),
        nvcc=_said("nvcc", "--version", line=-2),
        nvidia_smi=_smi(),
        **{name: _version(name) for name in ("triton", "torchvision", "timm", "numpy")},
    )
    backend = "cuda" if device.type == "cuda" else "cpu"
    with journal.row("library") as row:
        if row is not None:
            start = time.time()
            reason = backends.load(backend)
            row["load_seconds"] = round(time.time() - start, 1)
            chosen = None if reason else backends.select("auto", device)
            row.update(reason=reason, chosen=chosen)
            if reason or chosen != backend:
                row["status"] = "failed"
                row["error"] = reason or f"the backend that auto chooses is {chosen}, not {backend}"
    with journal.row("card", deadline, 2) as row:
        if row is not None and device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            row.update(
                name=properties.name,
                capability=f"{properties.major}.{properties.minor}",
                processors=properties.multi_processor_count,
                cache_bytes=properties.L2_cache_size,
                memory_bytes=properties.total_memory,
            )
    with journal.row("ceilings", deadline, 3) as row:
        if row is not None:
            row.update(device_facts(device))
            if device.type == "cuda":
                row["clocks_under_load"] = _clocks_under_load(device)


def _clocks_under_load(device: torch.device) -> dict[str, str]:
    """What nvidia-smi reads while two seconds of matrix products is queued."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(1500):
        a @ a
    read = _smi()
    torch.cuda.synchronize()
    return read


def _smi() -> dict[str, str]:
    said = _said("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", line=0)
    values = [value.strip() for value in said.split(", ")]
    names = _QUERY.split(",")
    return dict(zip(names, values)) if len(values) == len(names) else {"message": said}


def _said(*command: str, line: int) -> str:
    """One line of what a command prints."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]} on the path"
    finished = subprocess.run(command, capture_output=True, text=True, timeout=20)
    lines = (finished.stdout + finished.stderr).strip().splitlines() or ["nothing"]
    return lines[max(line, -len(lines))][:500]


def _version(name: str) -> str:
    try:
        return __import__(name).__version__
    except Exception as error:  # whatever a package does at import: the phases that need it say so again
        return f"cannot be imported: {error}"
