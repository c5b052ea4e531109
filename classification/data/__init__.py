"""Data sets and loaders of classification; start at `build_loaders(config)`.

A batch is `(images (N, 3, H, W) float32, targets (N,) int64)`, for inat18 also `temporal (N, 4)` and `spatial (N, 3)`,
float32.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.data import Mixup
from yacs.config import CfgNode

from internimage.errors import UserError
from internimage.workers import explained_worker_death

from .loader import ImageDataset, ImageLoader
from .memory import hold_in_memory
from .sampler import EvalSampler, TrainSampler
from .splits import open_splits
from .transforms import build_transform

__all__ = ["Loaders", "build_loaders", "build_transform", "explained_worker_death"]


@dataclass
class Loaders:
    """Result of `build_loaders`.

    Attributes:
        train: batches of this process's share of an epoch; None for evaluation only.
        val: batches of this process's share of the evaluation images, each image once over all processes.
        mixup: timm's Mixup for training batches, or None.
        num_classes: number of outputs of the model.
        class_names: by label.
        eval_columns: for 22K models evaluated on 1K: the columns of the logits to compare, `(1000,)` int64; else None.
    """

    train: ImageLoader | None
    val: ImageLoader
    mixup: Mixup | None
    num_classes: int
    class_names: list[str]
    eval_columns: torch.Tensor | None = None

    def start_workers(self) -> None:
        """Start the workers of both loaders for all epochs. Call this before training starts."""
        self.train.start_workers()
        self.val.start_workers()

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Set the epoch, which determines order and augmentation, and the first batch of the next pass over `train`."""
        self.train.sampler.set_epoch(epoch, first_step)


def build_loaders(config: CfgNode) -> Loaders:
    """Build the loaders of a configuration. Rank and world size are those of torch.distributed, if initialized.

    Raises:
        UserError: missing or unusable data.
    """
    running = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if running else (0, 1)

    def report(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    splits = open_splits(config, report)
    place = {"rank": rank, "world_size": world_size}
    settings = {
        "batch_size": config.DATA.BATCH_SIZE,
        "num_workers": _workers(config, world_size),
        "pin_memory": config.DATA.PIN_MEMORY and torch.cuda.is_available(),
        "skip_bad_images": config.DATA.SKIP_BAD_IMAGES,
        "timeout": config.DATA.TIMEOUT,
    }
    train = mixup = None
    if splits.train is not None:
        batch = config.DATA.BATCH_SIZE * world_size
        if len(splits.train) < batch:
            raise UserError(
                f"the training set has {len(splits.train)} images, fewer than one batch of {batch} "
                f"({config.DATA.BATCH_SIZE} x {world_size} processes); lower --batch-size"
            )
        mixup = _mixup(config, splits.num_classes)
        if config.DATA.IMG_ON_MEMORY or (config.DATA.ZIP_MODE and config.DATA.CACHE_MODE != "no"):
            splits.train = hold_in_memory(splits.train, report)
        dataset = ImageDataset(splits.train, build_transform(config, train=True), seed=config.SEED, substitute=True)
        sampler = TrainSampler(len(dataset), config.DATA.BATCH_SIZE, seed=config.SEED, **place)
        train = ImageLoader(dataset, sampler, **settings)
    dataset = ImageDataset(splits.val, build_transform(config, train=False), seed=config.SEED, substitute=False)
    sampler = EvalSampler(len(dataset), sequential=config.TEST.SEQUENTIAL, **place)
    val = ImageLoader(dataset, sampler, **settings)
    return Loaders(train, val, mixup, splits.num_classes, splits.class_names, splits.eval_columns)


def _workers(config: CfgNode, world_size: int) -> int:
    """`NUM_WORKERS`, at most this process's share of the CPUs. The batches do not depend on it."""
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.DATA.NUM_WORKERS, max(1, cpus // processes_here))


def _mixup(config: CfgNode, num_classes: int) -> Mixup | None:
    aug = config.AUG
    if not (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None):
        return None
    if config.DATA.BATCH_SIZE % 2:
        raise UserError(
            f"DATA.BATCH_SIZE is {config.DATA.BATCH_SIZE}, but mixup and cutmix pair the images of a batch; "
            "choose an even number, or --opts AUG.MIXUP 0 AUG.CUTMIX 0"
        )
    return Mixup(
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        label_smoothing=config.MODEL.LABEL_SMOOTHING,
        num_classes=num_classes,
    )
