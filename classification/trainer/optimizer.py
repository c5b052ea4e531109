"""Optimizer and schedule from the configuration: which parameters learn, how fast, and when.

The rules are the original project's: learning rates grow linearly with the total batch, reference 512; groups with
their own weight decay and scale come from `internimage.optim.param_groups`.
"""

from dataclasses import dataclass

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from yacs.config import CfgNode

from internimage.errors import UserError
from internimage.optim import param_groups

__all__ = ["LearningRates", "build_optimizer", "build_scheduler", "scaled_learning_rates"]

REFERENCE_BATCH = 512


@dataclass(frozen=True)
class LearningRates:
    """The three learning rates of a run, scaled to its total batch."""

    base: float
    warmup: float
    minimum: float


def scaled_learning_rates(config: CfgNode, world_size: int) -> LearningRates:
    """Scale the configured rates by (batch per process x processes x accumulation) / 512."""
    train = config.TRAIN
    scale = config.DATA.BATCH_SIZE * world_size * max(1, train.ACCUMULATION_STEPS) / REFERENCE_BATCH
    return LearningRates(train.BASE_LR * scale, train.WARMUP_LR * scale, train.MIN_LR * scale)


def build_optimizer(config: CfgNode, model: nn.Module, rates: LearningRates, world_size: int) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameter groups of `model`; sharded over the processes with `OPTIMIZER.USE_ZERO`.

    One process has nothing to shard and uses the plain optimizer, whose state has the same form: a checkpoint may be
    resumed with another number of processes. On GPUs the update is fused; its state, too, has the same form.
    """
    train, options = config.TRAIN, config.TRAIN.OPTIMIZER
    groups = param_groups(
        model,
        base_lr=rates.base,
        weight_decay=train.WEIGHT_DECAY,
        layer_decay=train.LR_LAYER_DECAY_RATIO if train.LR_LAYER_DECAY else None,
        dcn_lr_mul=options.DCN_LR_MUL,
    )
    name = options.NAME.lower()
    if name == "adamw":
        kind, kwargs = torch.optim.AdamW, {"eps": options.EPS, "betas": tuple(options.BETAS)}
    elif name == "sgd":
        kind, kwargs = torch.optim.SGD, {"momentum": options.MOMENTUM, "nesterov": True}
    else:
        raise UserError(f"TRAIN.OPTIMIZER.NAME is {options.NAME!r}; it must be adamw or sgd")
    if _on_gpu(groups):
        kwargs["fused"] = True  # one kernel for many parameters; on CPUs runs stay as they were, bit by bit
    if options.USE_ZERO and world_size > 1:
        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, lr=rates.base, **kwargs)
    return kind(groups, lr=rates.base, **kwargs)


def _on_gpu(groups: list[dict]) -> bool:
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


def build_scheduler(
    config: CfgNode, optimizer: torch.optim.Optimizer, rates: LearningRates, updates_per_epoch: int
) -> Scheduler:
    """timm's cosine, linear (polynomial of power 1) or step schedule over updates, not epochs, with linear warm-up."""
    train = config.TRAIN
    total = max(1, train.EPOCHS * updates_per_epoch)
    warmup = int(train.WARMUP_EPOCHS * updates_per_epoch)
    common = {"warmup_lr_init": rates.warmup, "warmup_t": warmup, "t_in_epochs": False}
    name = train.LR_SCHEDULER.NAME.lower()
    if name == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total, lr_min=rates.minimum, cycle_limit=1, **common)
    if name == "linear":
        rest = max(1, total - warmup)
        return PolyLRScheduler(
            optimizer, t_initial=rest, power=1.0, lr_min=rates.minimum, cycle_limit=1, warmup_prefix=True, **common
        )
    if name == "step":
        every = max(1, int(train.LR_SCHEDULER.DECAY_EPOCHS * updates_per_epoch))
        # Steps count from the start of the run, as in the timm release that the recipes were made with.
        common["warmup_prefix"] = False
        return StepLRScheduler(optimizer, decay_t=every, decay_rate=train.LR_SCHEDULER.DECAY_RATE, **common)
    raise UserError(f"TRAIN.LR_SCHEDULER.NAME is {train.LR_SCHEDULER.NAME!r}; it must be cosine, linear or step")
