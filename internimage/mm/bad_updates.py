"""Leave out updates whose gradient is not finite, and stop a training after several in a row."""

import math
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..checkpoint import save_atomic
from ..errors import UserError

__all__ = ["SkipBadUpdates"]


@HOOKS.register_module()
class SkipBadUpdates(Hook):
    """Leave out such updates, in all processes, since their gradients are averaged; `CheckedRunner` has this hook.

    mmengine reads the losses of every step as numbers, so that reading the gradient's norm waits for nothing more. If
    it clips the gradient, the norm is the one that it has computed.

    Args:
        limit: updates in a row that are left out, until the batch is saved to the work folder and the training ends.
    """

    priority = "VERY_HIGH"  # before weights are averaged and losses are logged

    def __init__(self, limit: int = 10) -> None:
        self.limit, self._in_a_row = limit, 0
        self._is_good: bool | None = None  # the update of this step, if it has one

    def before_train(self, runner: Runner) -> None:
        self._wrapper, self._buffers = runner.optim_wrapper, list(runner.model.buffers())
        self._wrapper.optimizer.register_step_pre_hook(self._check)

    def _norm(self, optimizer: torch.optim.Optimizer) -> float:
        wrapper = self._wrapper
        if wrapper.clip_grad_kwargs and wrapper.clip_func is nn.utils.clip_grad_norm_:
            return wrapper.message_hub.get_scalar(f"train/{wrapper.grad_name}").current()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    def _check(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._is_good = math.isfinite(self._norm(optimizer))
        if not self._is_good:
            optimizer.zero_grad(set_to_none=True)  # it updates no parameter without a gradient

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._is_good = None
        self._statistics = [buffer.clone() for buffer in self._buffers]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        loss = float(torch.as_tensor((outputs or {}).get("loss", 0.0)).detach())
        # With mixed precision the scaler does not call the optimizer then, nor if it only looks for its scale.
        if self._is_good is not False and math.isfinite(loss):
            self._in_a_row = 0 if self._is_good else self._in_a_row
            return
        for buffer, before in zip(self._buffers, self._statistics):
            buffer.copy_(before)
        self._in_a_row += 1
        runner.logger.warning(f"iteration {runner.iter}: update left out, its gradient is not finite (loss {loss})")
        if self._in_a_row < self.limit:
            return
        path = Path(runner.work_dir, f"bad_batch_iter_{runner.iter}_rank_{get_rank()}.pt")
        seed = [runner.shared_seed, get_rank(), runner.iter]  # of `seeding.sample_seed`
        save_atomic({"batch": data_batch, "loss": loss, "seed": seed, "model": runner.model.state_dict()}, path)
        raise UserError(
            f"{self._in_a_row} updates in a row were left out because the gradient was not finite; the last batch, "
            f"with loss {loss}, is in {path}; start again with --resume and a lower optim_wrapper.optimizer.lr, or "
            "without --amp"
        )
