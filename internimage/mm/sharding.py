"""`--shard`: what every process keeps of a model that is trained by several processes.

`none`: all of it (DistributedDataParallel). `zero`: the weights and gradients, and a part of the optimizer's state
(ZeRO stage 1, torch's ZeroRedundancyOptimizer). `fsdp`: a part of everything (torch's FSDP2, ZeRO stage 3).
Checkpoints are the same in all modes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ..errors import UserError
from ..layers import Block
from ..shards import gather_whole, own_part

__all__ = ["MODES", "configure_sharding", "distribute_optimizer_state", "shard_fully", "whole_state"]

MODES = ("none", "zero", "fsdp")
_ADVICE = "change the configuration, or omit --shard"


def configure_sharding(config: Config, mode: str | None) -> None:
    """Set `config.shard` to `mode`, that of the command line; None for the configuration's.

    Raises:
        UserError: an unknown mode, a single process, or a configuration that the mode does not support.
    """
    mode = config.shard = mode or config.get("shard", "none")
    if mode not in MODES:
        raise UserError(f"shard must be one of {', '.join(MODES)}; got {mode!r}")
    if mode == "none":
        return
    if config.launcher == "none":
        raise UserError(f"--shard {mode} needs several processes; start them with dist_train.sh or slurm_train.sh")
    optimizer = config.optim_wrapper.get("optimizer", {}).get("type")
    if config.optim_wrapper.type not in ("OptimWrapper", "AmpOptimWrapper") or not hasattr(torch.optim, str(optimizer)):
        raise UserError(
            f"--shard {mode} needs OptimWrapper or AmpOptimWrapper with an optimizer of torch.optim, got "
            f"{config.optim_wrapper.type} with {optimizer}; {_ADVICE}"
        )
    if mode == "zero":
        return
    if keys := [key for key in ("model_wrapper_cfg", "sync_bn") if config.get(key)]:
        raise UserError(f"--shard fsdp does not support {keys[0]}; {_ADVICE}")
    if any("EMAHook" in str(hook.get("type")) for hook in config.get("custom_hooks") or ()):
        raise UserError("--shard fsdp does not support EMAHook (it copies the model); omit it, or use --shard zero")


def shard_fully(model: nn.Module, *, unused_parameters: bool = False) -> None:
    """Shard an initialised model in place: one group per block of the backbone, and one of the rest.

    Parameters keep their names and become DTensors. The model still loads whole tensors, of which every process takes
    its part.

    Args:
        model: the same in all processes, on any device.
        unused_parameters: whether processes may use different parameters in a step.

    Raises:
        UserError: a parameter without dimensions, which FSDP2 does not support.
    """
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise UserError(f"--shard fsdp does not support parameters without dimensions ({scalars[0]}); use --shard zero")
    device = get_device()
    mesh = init_device_mesh(device, (get_world_size(),))
    for module in [module for module in model.modules() if isinstance(module, Block)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if unused_parameters:
        model.set_reduce_scatter_unused_params(True)
    for module in model.modules():
        module.register_load_state_dict_pre_hook(_distribute)
    model.to(device)  # the data preprocessor learns the device


def _distribute(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if prefix + name in state:
            state[prefix + name] = own_part(state[prefix + name], parameter)


def distribute_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """The state dict of an optimizer, with this process's parts of whole tensors; see `shard_fully`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        index: {key: own_part(value, parameters[index]) for key, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": parts}


@contextmanager
def whole_state(*holders: object) -> Iterator[None]:
    """Let `state_dict()` of models and optimizers return whole tensors in the main process, without communication.

    All processes must enter together: this gathers the parts.
    """
    gather = partial(gather_whole, keep=is_main_process())
    for holder in holders:
        parts = holder.state_dict()
        state = apply_to(parts, lambda value: isinstance(value, DTensor), gather)
        if hasattr(parts, "_metadata"):  # the modules' versions
            state._metadata = parts._metadata
        holder.state_dict = lambda state=state: state
    try:
        yield
    finally:
        for holder in holders:
            del holder.state_dict
