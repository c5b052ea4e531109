"""Encoded images in memory: one copy per machine, shared by its processes and their workers.

The original keeps a part of the images in each process and shuffles only within that part, so the order of training
depends on the number of processes. Here each process of a machine loads a part into memory that all of them map: the
same amount of memory, and every process can reach every image, so the shuffle stays one over the whole set.
"""

import mmap
import os
import socket
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from .samples import Samples

__all__ = ["MemorySamples", "hold_in_memory"]

_SHARED = Path("/dev/shm")
_READERS = 8
_ROOM = 0.9  # of the memory that is available now


class MemorySamples(Samples):
    """Samples whose encoded images are in memory. Image i is item `i // n` of part `i % n`, with n parts."""

    def __init__(self, samples: Samples, parts: list[mmap.mmap], sizes: list[np.ndarray]) -> None:
        self.root, self.names, self.labels, self.extra = samples.root, samples.names, samples.labels, samples.extra
        self._name = samples.name
        self.parts = parts
        self.ends = [np.cumsum(size) for size in sizes]

    def name(self, index: int) -> str:
        return self._name(index)

    def _place(self, index: int) -> tuple[mmap.mmap, slice]:
        item, part = divmod(index, len(self.parts))
        ends = self.ends[part]
        return self.parts[part], slice(int(ends[item - 1]) if item else 0, int(ends[item]))

    def size(self, index: int) -> int:
        _, place = self._place(index)
        return place.stop - place.start

    def read(self, index: int) -> bytes:
        part, place = self._place(index)
        data = part[place]
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


def _available() -> int:
    """Bytes of memory that this machine can still give out."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _reserve(path: Path | None, length: int, total: int) -> str | None:
    """Make a file of `length` bytes that other processes can map. Returns why that is impossible, or None."""
    if total > _ROOM * _available():
        return f"they take about {total / 1e9:.1f} GB, {_available() / 1e9:.1f} GB are free"
    if path is not None:
        try:
            with open(path, "wb") as file:
                # Takes the room now. Otherwise a full /dev/shm would kill the process (SIGBUS) at the first write.
                os.posix_fallocate(file.fileno(), 0, length)
        except OSError as error:
            return f"{_SHARED} has no room for {length / 1e9:.1f} GB per process ({error.strerror}); enlarge it"
    return None


def _map(path: Path) -> mmap.mmap:
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _load(samples: Samples, mine: range, sizes: np.ndarray, part: mmap.mmap, progress: bool) -> None:
    """Read the images `mine` into `part`, one after the other."""
    starts = np.cumsum(sizes) - sizes

    def load(item: int) -> None:
        size, start = int(sizes[item]), int(starts[item])
        if size:  # else: a missing file, reported by name when the image is used
            data = samples.read(mine[item])[:size]
            part[start : start + len(data)] = data

    with ThreadPoolExecutor(_READERS) as pool:
        loaded = pool.map(load, range(len(mine)))
        for _ in tqdm(loaded, total=len(mine), desc="images into memory", unit="img", disable=not progress):
            pass


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
    machine = f"{socket.gethostname()}:{os.stat(_SHARED).st_dev}"
    everyone = _gather((machine, uuid.uuid4().hex))
    rank = dist.get_rank() if len(everyone) > 1 else 0
    here = [other for other, (where, _) in enumerate(everyone) if where == machine]
    mine = range(here.index(rank), len(samples), len(here))
    with ThreadPoolExecutor(_READERS) as pool:
        sizes = np.fromiter(pool.map(samples.size, mine), dtype=np.int64, count=len(mine))
    length = max(1, int(sizes.sum()))

    # A process that is alone on its machine needs no file: its workers inherit the memory.
    paths = [_SHARED / f"internimage-{everyone[other][1]}" for other in here] if len(here) > 1 else []
    own = paths[here.index(rank)] if paths else None
    try:
        reasons = [reason for reason in _gather(_reserve(own, length, length * len(here))) if reason]
        if reasons:
            report(f"images are not kept in memory but read from disk: {reasons[0]}")
            return samples
        parts = [_map(path) for path in paths] or [mmap.mmap(-1, length)]
        all_sizes = _gather(sizes)
    finally:
        if own:
            own.unlink(missing_ok=True)  # the memory lives as long as somebody has it mapped
    _load(samples, mine, sizes, parts[here.index(rank)], progress=rank == 0)
    _gather(None)
    return MemorySamples(samples, parts, [all_sizes[other] for other in here])
