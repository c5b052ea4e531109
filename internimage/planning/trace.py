"""The memory of one forward and backward pass, from fake tensors: every storage that the pass creates is counted.

PyTorch's own `torch.distributed._tools.MemTracker` counts the same bytes (a test compares them) but visits every module
after every operation: 45 of the 70 s that a pass of InternImage-T took with it.
"""

import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from internimage.meta_former import logits_of_images
from ops_dcnv3.tracing import traced_as

__all__ = ["LiveBytes", "Sharding", "Trace", "block_of", "trace_step"]

_BLOCK = re.compile(r"levels\.\d+\.blocks\.\d+\.")


class Sharding(NamedTuple):
    """Each gradient is reduced to a shard, of its block at once, as soon as the backward pass has computed it.

    Attributes:
        shard: elements that the process keeps of a tensor with this shape.
        gathers: the weights are sharded too: of the blocks, those of two are gathered at a time, the present one's and
            the next one's; what is outside of blocks stays gathered for the whole step.
        gradient, reduced: bytes per element of a gradient shard, and of the buffer that is reduced.
    """

    shard: Callable[[torch.Size], int]
    gathers: bool
    gradient: int
    reduced: int


class Trace(NamedTuple):
    """What a pass needs, in bytes, beyond the weights as they are stored, the buffers and the optimizer's states.

    Attributes:
        parameters: the shape of every parameter.
        activations: saved by the forward pass for the backward pass, with the images and labels.
        at_peak: what is alive when it is most: `copies`, `gathered` weights, `gradients`, their `shards`, the buffer
            `reducing` them, and all `other`: activations and workspace.
        buffers: of the module, such as running statistics.
    """

    parameters: dict[str, torch.Size]
    activations: int
    at_peak: Counter[str]
    buffers: int


def block_of(name: str) -> str:
    """The block that a parameter belongs to; empty outside of blocks."""
    match = _BLOCK.match(name)
    return match[0] if match else ""


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations within create and that are alive, by kind, and the most of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._known: dict[int, tuple[str, weakref.ref]] = {}

    def watch(self, tensor: Tensor, kind: str) -> None:
        """Count the storage of a tensor as `kind` from now on, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def forget(_: weakref.ref) -> None:
            self.now[self._known.pop(key)[0]] -= size

        if key in self._known:
            self.now[self._known[key][0]] -= size
        self._known[key] = kind, weakref.ref(storage, forget)
        self.now[kind] += size

    def note(self, extra: int = 0) -> None:
        """Compare what is alive, and `extra` bytes of a kernel, with the peak."""
        if self.now.total() + extra > self.at_peak.total():
            self.at_peak = self.now + Counter(other=extra)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        kind = "other"
        if func is torch.ops.aten._to_copy.default and self._kind(args[0]) == "weights":
            kind = "copies"
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and self._kind(tensor) is None:
                self.watch(tensor, kind)
        half_sums = func is torch.ops.ops_dcnv3.backward.default and args[1].element_size() == 2
        self.note(4 * args[1].numel() if half_sums else 0)  # the CUDA kernel sums in float32, then narrows
        return result

    def _kind(self, tensor: Tensor) -> str | None:
        return self._known.get(tensor.untyped_storage()._cdata, (None,))[0]


class _Shards:
    """Replays on `live` when a sharded model gathers the weights of a block and reduces its gradients."""

    def __init__(self, model: nn.Module, sharding: Sharding, live: LiveBytes) -> None:
        self.sharding, self.live, self.forward = sharding, live, True
        self.weights: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            # Without gathering, gradients are reduced one by one.
            self.weights.setdefault(block_of(name) if sharding.gathers else name, []).append(parameter)
        self.missing = {group: len(parameters) for group, parameters in self.weights.items()}
        self.order = [group for group in self.weights if group]
        for group, parameters in self.weights.items():
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, group=group: self.after_gradient(group))
        for group in self.order if sharding.gathers else ():
            block = model.get_submodule(group.rstrip("."))
            block.register_forward_pre_hook(lambda *_, group=group: self.before_forward(group))
        self.gather([""])

    def size(self, group: str) -> int:
        """Bytes of the gathered weights of a block."""
        return sum(p.numel() * p.element_size() for p in self.weights.get(group, ()))

    def gather(self, groups: Iterable[str]) -> None:
        if self.sharding.gathers:
            self.live.now["gathered"] = sum(self.size(group) for group in groups)
            self.live.note()

    def before_forward(self, group: str) -> None:
        if self.forward:  # else it is recomputed
            index = self.order.index(group)
            self.gather({"", *self.order[index : index + 2]})

    def after_gradient(self, group: str) -> None:
        if self.forward:
            self.forward = False
            self.gather({"", *self.order[-2:]})
        self.missing[group] -= 1
        if self.missing[group]:
            return
        parameters, sharding, now = self.weights[group], self.sharding, self.live.now
        earlier = self.order[: self.order.index(group)] if group in self.order else []
        self.gather({"", *earlier[-1:]} - {group})  # the weights are freed before the gradients are reduced
        now["reducing"] = sharding.reduced * sum(p.numel() for p in parameters)  # until the next block's turn
        self.live.note()
        for parameter in parameters:
            parameter.grad = None
        now["shards"] += sharding.gradient * sum(sharding.shard(p.shape) for p in parameters)
        self.live.note()
        if group:
            self.gather({"", *earlier[-2:]})


def _built(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # parameters of fake tensors cannot be converted
    try:
        return build()
    finally:
        torch.set_default_dtype(before)


def trace_step(
    build: Callable[[], nn.Module],
    batch: int,
    size: int,
    *,
    dtype: torch.dtype = torch.float32,
    autocast: bool = True,
    casts_weights: bool = False,
    sharding: Sharding | None = None,
    device: str = "cuda",
) -> Trace:
    """Trace one training step of a classifier on `batch` images of `size` x `size` pixels, without its optimizer.

    Args:
        build: makes the model; called in a mode where tensors have no data.
        dtype: of the computation.
        autocast: compute in `dtype` by autocast; else the images have that type.
        casts_weights: the weights have that type, as a gathered copy or altogether.
        sharding: what is sharded; None to keep weights and gradients whole.
        device: whose path to trace (see `ops_dcnv3.tracing`).
    """
    # If a process's first backward pass is one of fake tensors, autograd starts threads, and forked processes fail.
    torch.ones(1, requires_grad=True).backward()
    with traced_as(device), FakeTensorMode():
        model = _built(build, dtype if casts_weights else torch.float32).train()
        parameters = {name: parameter.shape for name, parameter in model.named_parameters()}
        images = torch.empty(batch, 3, size, size, dtype=torch.float32 if autocast else dtype)
        labels = torch.empty(batch, dtype=torch.long)
        live = LiveBytes()
        for tensor in (*model.parameters(), *model.buffers()):
            live.watch(tensor, "weights")
        for tensor in (images, labels):
            live.watch(tensor, "other")
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: live.watch(p.grad, "gradients"))
        if sharding is not None:
            _Shards(model, sharding, live)
        with live:
            with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
                logits = logits_of_images(model, images)
                loss = F.cross_entropy(logits.float(), labels)
            del logits
            activations = live.now["other"]
            loss.backward()
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return Trace(parameters, activations, live.at_peak, buffers)
