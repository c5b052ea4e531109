"""Tests that need a CUDA device: marked `gpu`, collected everywhere, skipped where torch sees none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest itself selects by `-m gpu`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """By default cuDNN rounds the factors of float32 convolutions to TF32's 10 bits; matrix products it leaves."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
