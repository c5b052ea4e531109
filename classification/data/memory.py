"""Encoded images in memory: one copy per machine, shared by its processes and their workers.

The original keeps a part of the images in each process and shuffles only within that part, so the order of training
depends on the number of processes. Here the processes of a machine fill one memory that all of them map.
"""

import mmap
import os
import socket
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch.distributed as dist

from .samples import Samples

__all__ = ["MemorySamples", "hold_in_memory"]

_SHARED = Path("/dev/shm")
_READERS = 8
_ROOM = 0.9  # of the memory that is available now
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, 1
_PAGE_CACHE = ("active_file", "inactive_file")  # counted as usage, and given up for what is needed


class MemorySamples(Samples):
    """Samples whose encoded images stand in memory, one after the other; image i ends at `ends[i]`."""

    def __init__(self, samples: Samples, memory: mmap.mmap, ends: np.ndarray) -> None:
        vars(self).update({name: getattr(samples, name) for name in ("root", "names", "labels", "extra", "name")})
        self.memory, self.ends = memory, ends

    def place(self, index: int) -> tuple[int, int]:
        """Where image `index` begins and ends in the memory."""
        return int(self.ends[index - 1]) if index else 0, int(self.ends[index])

    def read(self, index: int) -> bytes:
        begin, end = self.place(index)
        data = self.memory[begin:end]
        if not data:
            raise OSError("the file was empty or missing when the images were loaded into memory")
        return data


def _gather(value: object) -> list:
    """`value` of every process, by rank. Nobody leaves before everybody came."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory to be had: what the machine has left, or a limit of the job or container (cgroup) if less."""
    meminfo = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
    least = int(meminfo["MemAvailable"].split()[0]) * 1024
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = groups / controllers / path.lstrip("/")  # controllers: "memory" in version 1, empty in version 2
        for group in (folder, *folder.parents):
            for limit_file, usage_file in _CGROUP_FILES:
                limit, usage, stat = group / limit_file, group / usage_file, group / "memory.stat"
                if limit.exists() and limit.read_text().strip().isdigit():
                    usage = int(usage.read_text())
                    counts = dict(line.split() for line in stat.read_text().splitlines())
                    cache = sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in _PAGE_CACHE)
                    least = min(least, int(limit.read_text()) - usage + cache)
    return least


def _reserve(path: Path | None, length: int) -> str | None:
    """Make a file of `length` bytes that other processes can map. Returns why that is impossible, or None."""
    available = _available()
    if length > _ROOM * available:
        return f"they take {length / 1e9:.1f} GB, {max(available, 0) / 1e9:.1f} GB are free"
    try:
        if path is not None:
            with open(path, "wb") as file:
                # Takes the room now. Otherwise a full /dev/shm would kill the process (SIGBUS) at the first write.
                os.posix_fallocate(file.fileno(), 0, length)
    except OSError as error:
        return f"{_SHARED} has no room for {length / 1e9:.1f} GB ({error.strerror}); enlarge it"
    return None


def hold_in_memory(samples: Samples, report: Callable[[str], None]) -> Samples:
    """Load all encoded images into memory; if they do not fit, say so and return `samples` as they are.

    If torch.distributed is running, all processes must call this together.

    Args:
        samples: where to read from.
        report: called with one line of text if the images stay on disk.
    """
    if sys.platform != "linux":
        report("images are not kept in memory but read from disk: only Linux shares them with worker processes")
        return samples
    machine = socket.gethostname(), os.stat(_SHARED).st_dev
    here = [rank for rank, other in enumerate(_gather(machine)) if other == machine]
    rank = dist.get_rank() if len(here) > 1 else here[0]
    # A process that is alone on its machine needs no file: its workers inherit the memory.
    path = _SHARED / f"internimage-{uuid.uuid4().hex}" if len(here) > 1 else None
    ends = reason = None
    with ThreadPoolExecutor(_READERS) as pool:
        if rank == here[0]:
            ends = np.cumsum(np.fromiter(pool.map(samples.size, range(len(samples))), dtype=np.int64))
            reason = _reserve(path, max(1, int(ends[-1])))
        plans = _gather((path, ends, reason))
        path, ends, _ = plans[here[0]]
        try:
            if reasons := [reason for *_, reason in plans if reason]:
                report(f"images are not kept in memory but read from disk: {reasons[0]}")
                return samples
            with open(path, "r+b") if path else nullcontext() as file:
                memory = mmap.mmap(file.fileno() if file else -1, max(1, int(ends[-1])))
            _gather(None)
        finally:
            if path and rank == here[0]:
                path.unlink(missing_ok=True)  # the memory lives as long as somebody has it mapped
        held = MemorySamples(samples, memory, ends)

        def load(index: int) -> None:
            begin, end = held.place(index)
            if end > begin:  # else: a missing file, reported by name when the image is used
                data = samples.read(index)[: end - begin]
                memory[begin : begin + len(data)] = data

        list(pool.map(load, range(here.index(rank), len(samples), len(here))))
    _gather(None)
    return held
