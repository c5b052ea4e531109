"""Settings of the whole suite."""

import functools
import gc
import inspect
import os
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

# One thread each, whatever the caller set: the suite runs in several processes, and many tests fork. A child of a
# process with OpenMP threads waits forever for these.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

if not torch.cuda.is_available():
    # Tests that build the package build its CPU kernels; those of CUDA have tests of their own.
    os.environ.setdefault("OPS_DCNV3_NO_CUDA", "1")


@functools.cache
def _forks(module: ModuleType) -> bool:
    return re.search("fork|two_processes", inspect.getsource(module)) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that fork, so that no child inherits the process groups and threads of an earlier file.

    Most of the long ones are among them, for which none should wait at the end.
    """
    items.sort(key=lambda item: not _forks(item.module))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of later garbage collections, which would walk through a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Put the environment back after each test: what a launcher sets would make the next run a part of it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
