"""Optimizer and learning-rate schedule from the configuration.

The rules are the original project's: learning rates are proportional to the total batch size; parameter groups come
from `internimage.optim.param_groups`.
"""

import torch
from timm.optim import get_optimizer_class
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from yacs.config import CfgNode

from internimage.optim import param_groups

__all__ = ["build_optimizer", "build_scheduler", "learning_rate_scale"]

REFERENCE_BATCH = 512


def learning_rate_scale(config: CfgNode, world_size: int) -> float:
    """Factor on the configured learning rates: (batch per process x processes x accumulation) / 512."""
    return config.DATA.BATCH_SIZE * world_size * max(1, config.TRAIN.ACCUMULATION_STEPS) / REFERENCE_BATCH


def build_optimizer(config: CfgNode, model: nn.Module, scale: float, world_size: int) -> torch.optim.Optimizer:
    """The optimizer over the parameter groups of `model`; with `OPTIMIZER.USE_ZERO`, sharded over the processes.

    AdamW and SGD are PyTorch's; others are those of timm's factory, with its EPS, BETAS and MOMENTUM.

    `scale` is the factor on the learning rates. The state has the same form with and without sharding and on CPUs and
    GPUs (where the update is fused), so a checkpoint can be resumed with another number of processes.
    """
    train, options = config.TRAIN, config.TRAIN.OPTIMIZER
    groups = param_groups(
        model,
        base_lr=train.BASE_LR * scale,
        weight_decay=train.WEIGHT_DECAY,
        layer_decay=train.LR_LAYER_DECAY_RATIO if train.LR_LAYER_DECAY else None,
        dcn_lr_mul=options.DCN_LR_MUL,
    )
    if options.NAME.lower() == "adamw":
        kind, kwargs = torch.optim.AdamW, {"eps": options.EPS, "betas": tuple(options.BETAS)}
    elif options.NAME.lower() == "sgd":
        kind, kwargs = torch.optim.SGD, {"momentum": options.MOMENTUM, "nesterov": True}
    else:
        kind, kwargs = get_optimizer_class(options.NAME), {}
    kwargs["lr"] = train.BASE_LR * scale
    if kind in (torch.optim.AdamW, torch.optim.SGD) and _on_gpu(groups):
        kwargs["fused"] = True  # one kernel for many parameters; CPU runs stay bit-exact to earlier ones
    if options.USE_ZERO and world_size > 1:
        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **kwargs)
    return kind(groups, **kwargs)


def _on_gpu(groups: list[dict]) -> bool:
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


def build_scheduler(
    config: CfgNode, optimizer: torch.optim.Optimizer, scale: float, updates_per_epoch: int
) -> Scheduler:
    """timm's cosine, linear (polynomial of power 1) or step schedule over updates, with linear warm-up.

    `scale` is the factor on the learning rates.
    """
    train = config.TRAIN
    total = max(1, train.EPOCHS * updates_per_epoch)
    warmup = int(train.WARMUP_EPOCHS * updates_per_epoch)
    common = {"warmup_lr_init": train.WARMUP_LR * scale, "warmup_t": warmup, "t_in_epochs": False}
    minimum = train.MIN_LR * scale
    if train.LR_SCHEDULER.NAME == "cosine":
        return CosineLRScheduler(optimizer, t_initial=total, lr_min=minimum, cycle_limit=1, **common)
    if train.LR_SCHEDULER.NAME == "linear":
        rest = max(1, total - warmup)
        return PolyLRScheduler(
            optimizer, t_initial=rest, power=1.0, lr_min=minimum, cycle_limit=1, warmup_prefix=True, **common
        )
    every = max(1, int(train.LR_SCHEDULER.DECAY_EPOCHS * updates_per_epoch))
    # Steps count from the start of the run, as in the timm release that the recipes were made with.
    common["warmup_prefix"] = False
    return StepLRScheduler(optimizer, decay_t=every, decay_rate=train.LR_SCHEDULER.DECAY_RATE, **common)
