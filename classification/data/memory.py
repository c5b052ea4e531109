"""Encoded images in memory: one copy per machine, shared by its processes and their workers.

The original keeps a part of the images in each process and shuffles only within that part, so the order of training
depends on the number of processes. Here the processes of a machine fill one memory that all of them map.
"""

import itertools
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

from classification.trainer.distributed import gather

from .samples import Samples

__all__ = ["MemorySamples", "hold_in_memory"]

_SHARED = Path("/dev/shm")
_THREADS = 8
_SHARE = 0.9  # of the free memory
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # version 2, 1
_PAGE_CACHE = ("active_file", "inactive_file")  # part of the usage, but the kernel frees it on demand


class MemorySamples(Samples):
    """Samples whose encoded images are stored in memory, one after the other; image i ends at `ends[i]`."""

    def __init__(self, samples: Samples, memory: mmap.mmap, ends: np.ndarray) -> None:
        self.root, self.names, self.labels, self.extra = samples.root, samples.names, samples.labels, samples.extra
        self.memory, self.ends = memory, ends

    def span(self, index: int) -> slice:
        """The part of the memory that holds image `index`."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    def read(self, index: int) -> bytes:
        data = self.memory[self.span(index)]
        if not data:
            raise OSError("the file was empty or missing when the images were loaded into memory")
        return data


def _available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of free memory: of the machine, or of the cgroup of the job or container if that is less."""
    meminfo = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
    free = [int(meminfo["MemAvailable"].split()[0]) * 1024]
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = groups / controllers / path.lstrip("/")  # controllers: "memory" in version 1, empty in version 2
        for group, (limit, usage) in itertools.product((folder, *folder.parents), _CGROUP_FILES):
            if (group / limit).exists() and (group / limit).read_text().strip().isdigit():
                counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                cache = sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in _PAGE_CACHE)
                free.append(int((group / limit).read_text()) - int((group / usage).read_text()) + cache)
    return min(free)


def _reserve(path: Path | None, length: int) -> str | None:
    """Create the shared file `path`, if there is one, of `length` bytes. Returns the reason if there is no room."""
    available = _available()
    if length > _SHARE * available:
        return f"they take {length / 1e9:.1f} GB, {max(available, 0) / 1e9:.1f} GB are free"
    try:
        if path is not None:
            with open(path, "wb") as file:
                # Allocate now. Otherwise a full /dev/shm would kill the process (SIGBUS) at the first write.
                os.posix_fallocate(file.fileno(), 0, length)
    except OSError as error:
        return f"{_SHARED} has no room for {length / 1e9:.1f} GB ({error.strerror}); enlarge it"
    return None


def hold_in_memory(samples: Samples, report: Callable[[str], None]) -> Samples:
    """Load all encoded images into memory. If they do not fit, report it and return `samples`.

    If torch.distributed is initialized, all processes must call this function.

    Args:
        samples: the images to load.
        report: called with one line of text if the images stay on disk.
    """
    if sys.platform != "linux":
        report("images are not kept in memory but read from disk: DATA.IMG_ON_MEMORY is supported on Linux only")
        return samples
    machine = socket.gethostname(), os.stat(_SHARED).st_dev
    here = [rank for rank, other in enumerate(gather(machine)) if other == machine]
    rank = dist.get_rank() if len(here) > 1 else here[0]
    # The only process of a machine needs no file: its workers inherit the memory.
    path = _SHARED / f"internimage-{uuid.uuid4().hex}" if len(here) > 1 else None
    ends = reason = None
    with ThreadPoolExecutor(_THREADS) as pool:
        if rank == here[0]:
            ends = np.cumsum(np.fromiter(pool.map(samples.size, range(len(samples))), dtype=np.int64))
            reason = _reserve(path, max(1, int(ends[-1])))
        plans = gather((path, ends, reason))
        path, ends, _ = plans[here[0]]
        try:
            if reasons := [reason for *_, reason in plans if reason]:
                report(f"images are not kept in memory but read from disk: {reasons[0]}")
                return samples
            with open(path, "r+b") if path else nullcontext() as file:
                memory = mmap.mmap(file.fileno() if file else -1, max(1, int(ends[-1])))
            gather(None)
        finally:
            if path and rank == here[0]:
                path.unlink(missing_ok=True)  # the memory lives as long as a process maps it
        held = MemorySamples(samples, memory, ends)

        def load(index: int) -> None:
            span = held.span(index)
            if span.stop > span.start:  # else a missing file: `read` raises an error when the image is used
                data = samples.read(index)[: span.stop - span.start]
                memory[span.start : span.start + len(data)] = data

        list(pool.map(load, range(here.index(rank), len(samples), len(here))))
    gather(None)
    return held
