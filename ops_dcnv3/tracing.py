"""Run layers on fake tensors as they run on a GPU, for example to count memory on a machine without one.

Fake tensors (`torch._subclasses.FakeTensorMode`) have shapes and no data. The layers treat them like the tensors of any
program transformation and call PyTorch's own operators, which keep other tensors for backward than the compiled ones.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from . import backends, norm, onednn

__all__ = ["traced_as"]


@contextmanager
def traced_as(device: str) -> Iterator[None]:
    """Within, fake CPU tensors take the path of real tensors on `device`: `cuda` (compiled kernels) or `cpu`.

    They stay on the CPU, because PyTorch has no backward pass for fake tensors of a device that is missing. Autocast
    must be that of the CPU. Not for tensors with data, and not while other threads use the layers.
    """
    onednn.onednn_works()  # cached: with fake tensors the answer would be wrong
    changes: list[tuple[object, str, object]] = [(module, "is_plain", lambda *_: True) for module in (norm, onednn)]
    if device == "cuda":
        changes += [
            (norm, "_DEVICE", "cpu"),
            (norm, "_IS_OURS", "is_cpu"),
            (norm, "_has_kernels", lambda _: True),
            (onednn, "onednn_works", lambda: False),
            (onednn, "_RECOMPUTING", ("cpu",)),
            (backends, "select", lambda name, _: "cuda" if name == "auto" else name),
        ]
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(patch.object(module, name, value))
        yield
