"""Evaluate a classifier: accuracy over all processes, and throughput."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, repeat

import torch
from torch import Tensor, nn

from classification.data import Loaders
from internimage.errors import UserError

from .distributed import World, gather, sum_over_processes

__all__ = ["evaluate", "evaluate_all", "forward_precision", "in_step", "throughput", "to_device"]


def forward_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Autocast to `dtype`, or plain fp32 for None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def to_device(batch: tuple, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Split a batch of the loaders, (images, target, metadata ...), into the model's inputs and the target."""
    images, target, *metadata = (part.to(device, non_blocking=True) for part in batch)
    return (images, *metadata), target


def in_step(batches: Iterable) -> Iterator[tuple]:
    """Batches until no process has another one; a process without one yields a batch of no images meanwhile.

    For models whose forward pass gathers parameters from all processes. All processes must call this function.
    """
    for batch in chain(batches, repeat(None)):
        known = [parts for parts in gather(batch and [(part.shape[1:], part.dtype) for part in batch]) if parts]
        if not known:
            return
        yield batch or tuple(torch.zeros((0, *shape), dtype=dtype) for shape, dtype in known[0])


@torch.no_grad()  # not inference_mode: FSDP keeps tensors of a forward pass for the next training step
def evaluate(
    model: nn.Module,
    batches: Iterable,
    world: World,
    *,
    dtype: torch.dtype | None = None,
    columns: Tensor | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> dict[str, float]:
    """Cross entropy, top-1 and top-5 accuracy in percent over all processes, and the number of images.

    Args:
        model: a classifier.
        batches: as from `Loaders.val`: images `(N, 3, H, W)`, targets `(N,)`, optionally metadata.
        world: rank, number of processes and device.
        dtype: of autocast; None for fp32.
        columns: `(classes,)` int64, the logits to keep, to evaluate a 22K model on 1K classes.
        keep: called with the logits of each batch, `(N, classes)`, float32.

    Raises:
        UserError: there are no images.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, top-1, top-5, images
    for batch in batches:
        inputs, target = to_device(batch, world.device)
        with forward_precision(world.device, dtype):
            logits = model(*inputs)
        logits = logits.float()
        if columns is not None:
            logits = logits[:, columns.to(logits.device)]
        if keep is not None:
            keep(logits)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        loss = nn.functional.cross_entropy(logits, target, reduction="sum")
        sums += torch.stack([loss, best[:, 0].sum(), best.sum(), loss.new_tensor(len(target))]).to(sums)
    loss, top1, top5, images = sum_over_processes(world, sums).tolist()
    if not images:
        raise UserError("the validation set is empty; check DATA.DATA_PATH and its val folder")
    return {"loss": loss / images, "top1": 100 * top1 / images, "top5": 100 * top5 / images, "images": images}


def evaluate_all(
    model: nn.Module,
    averaged: nn.Module | None,
    loaders: Loaders,
    world: World,
    dtype: torch.dtype | None,
    log: Callable[[str], None],
    watch: Callable[[Iterable], Iterable] = iter,
    keep: Callable[[Tensor], None] | None = None,
) -> tuple[dict[str, float], dict[str, float] | None]:
    """`evaluate` the plain model and the averaged model, if any, and log one line for each.

    The batches pass through `watch`, which may raise an error to end the evaluation.
    """
    results = []
    for name, each in (("validation", model), ("averaged weights", averaged)):
        if each is None:
            results.append(None)
            continue
        start = time.perf_counter()
        figures = evaluate(each, watch(loaders.val), world, dtype=dtype, columns=loaders.eval_columns, keep=keep)
        rate = figures["images"] / (time.perf_counter() - start)
        log(
            f"{name}: top-1 {figures['top1']:.3f}% top-5 {figures['top5']:.3f}% loss {figures['loss']:.4f} "
            f"({figures['images']:.0f} images, {rate:.1f} images/s)"
        )
        results.append(figures)
    if bad := list(loaders.val.bad_images):
        log(f"bad validation images skipped by this process: {len(bad)}; the first: {bad[0]}")
    return results[0], results[1]


@torch.inference_mode()
def throughput(
    model: nn.Module, batch: tuple, world: World, *, dtype: torch.dtype | None = None, seconds: float = 5.0
) -> float:
    """Images per second of the forward pass on one batch, after warm-up: at least `seconds` and three passes."""
    model.eval()
    inputs, _ = to_device(batch, world.device)
    finish = torch.cuda.synchronize if world.device.type == "cuda" else lambda: None
    with forward_precision(world.device, dtype):
        for _ in range(50 if world.device.type == "cuda" else 2):
            model(*inputs)
        finish()
        passes, start = 0, time.perf_counter()
        while passes < 3 or time.perf_counter() - start < seconds:
            model(*inputs)
            finish()
            passes += 1
    return passes * len(inputs[0]) / (time.perf_counter() - start)
