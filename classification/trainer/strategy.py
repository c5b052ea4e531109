"""How a model is spread over the processes of a run: what a training step and a checkpoint need to know of it.

All else (loop, schedule, evaluation, stopping, rotation of checkpoints, resuming) is the same for every strategy.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from internimage.checkpoint import extract_state_dict, load_exact, naming, save_atomic
from internimage.errors import CheckpointError

from .dcp import read
from .distributed import World, run_on_main, wrap_model

__all__ = ["Strategy"]


class Strategy:
    """One process, or DistributedDataParallel over several (and ZeRO, which is another optimizer).

    A subclass overrides what it does differently. All processes must call each method, and equally often.

    Args:
        world: rank, number of processes and device.
        dtype: of autocast around every forward pass; None for fp32, or if the strategy casts by itself.
        fp16_gradients: whether processes exchange gradients in float16.

    Attributes:
        model: the module with the plain state-dict keys, without a wrapper.
        network: what a training step calls.
        optimizer: its `param_groups` are those of `build_optimizer`; the schedule sets their learning rates.
        scaler: of the loss; disabled except for fp16.
        ema: the averaged weights, in `ema.module`; None for none.
        suffix: of the names of checkpoints; empty for folders.
    """

    suffix = ".pth"

    def __init__(self, world: World, dtype: torch.dtype | None = None, fp16_gradients: bool = False) -> None:
        self.world, self.dtype, self.fp16_gradients = world, dtype, fp16_gradients

    def prepare(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        ema_decay: float | None = None,
    ) -> None:
        """Take over a model with its initial weights, frozen where it should be, and set all attributes.

        `build_optimizer` is called once, with the model as the optimizer is to see it.
        """
        self.model = model
        self.ema = ModelEmaV3(model, decay=ema_decay) if ema_decay is not None else None
        self.network = self.spread()
        self.optimizer = build_optimizer(model)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.dtype == torch.float16)

    def spread(self) -> nn.Module:
        """Spread `models` over the processes; return what a training step calls."""
        if self.world.size == 1:
            return self.model
        network = wrap_model(self.world, self.model)
        if self.fp16_gradients:
            network.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return network

    @property
    def models(self) -> list[nn.Module]:
        """The model and, if any, its average: a checkpoint keeps their buffers by process."""
        return [self.model] + ([self.ema.module] if self.ema is not None else [])

    @functools.cached_property  # walking through T's modules takes a millisecond
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn, after `prepare`."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def skips_overflow(self) -> bool:
        """Whether an infinite gradient is normal, because `update` leaves such an update out."""
        return self.scaler.is_enabled()

    # One update: for each of its batches `accumulate` around forward and `backward`; then `update`, `average`.

    def accumulate(self, updates: bool) -> AbstractContextManager:
        """Context of a batch's forward and backward pass; `updates`: it is the last one of an update."""
        return self.network.no_sync() if not updates and self.world.size > 1 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss (scalar), already divided by the batches of the update."""
        self.scaler.scale(loss).backward()

    def update(self, max_norm: float | None) -> Tensor:
        """Clip the gradient to `max_norm` (None or 0: do not) and update the weights, unless it is not finite.

        Returns:
            The norm of the gradient before clipping (scalar), the same on all processes.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if max_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
        if not self.scaler.is_enabled():  # which leaves out such updates itself
            shard = getattr(self.optimizer, "optim", self.optimizer)  # ZeRO keeps it in an optimizer of its own
            group = shard.param_groups[0]
            # SGD's kernel would leave its first momentum uninitialized; sharded parameters were not tried.
            whole = not isinstance(self.parameters[0], DTensor)
            if group.get("fused") and whole and isinstance(shard, torch.optim.AdamW):
                shard.found_inf = (~norm.isfinite()).float()  # read by the kernel, so that nobody waits for the GPU
            elif not norm.isfinite():
                return norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def average(self) -> None:
        """Update the averaged weights, if any."""
        if self.ema is not None:
            self.ema.update(self.model)

    @contextmanager
    def evaluation(self) -> Iterator[list[nn.Module | None]]:
        """Context of an evaluation: the model and its average (None if there is none) to call, on every process."""
        yield [*self.models, None][:2]

    def batches(self, batches: Iterable) -> Iterable:
        """The batches of an evaluation, as many in each process if forward passes wait for each other."""
        return batches

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The entries `model`, `optimizer`, `scaler` and, if averaged, `model_ema` of a plain checkpoint.

        Whole tensors, on rank 0 only; other ranks return an empty dict.
        """
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict(to=0)
        if not self.world.is_main:
            return {}
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        return state | ({"model_ema": self.ema.module.state_dict()} if self.ema is not None else {})

    def load_state_dict(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Load what `state_dict` returned, in a run of any strategy and number of processes; strictly.

        Raises:
            CheckpointError: it does not fit the model or the optimizer; names `path`.
        """
        try:
            self._load_weights(self.model, checkpoint, path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; to train another model, choose another folder with --tag NAME") from None
        if self.ema is not None:
            self._load_weights(self.ema.module, checkpoint, path, ema=True)
        try:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            saved = dict(checkpoint["optimizer"])
            saved["state"] = {
                number: {name: self.place(value, parameters[number]) for name, value in states.items()}
                for number, states in saved["state"].items()
            }
            # A copy, because the file is mapped into memory and is deleted or rewritten during the run.
            _restore_optimizer(self.optimizer, copy.deepcopy(saved))
            self.scaler.load_state_dict(checkpoint["scaler"] or self.scaler.state_dict())
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the optimizer state in {path} does not fit this configuration ({str(error).splitlines()[0]}); "
                "resume with the same optimizer, layer decay and freezing, or load its weights with --pretrained"
            ) from None

    def place(self, value: Any, own: Tensor) -> Any:
        """A value of a checkpoint in the form that it has here, which is that of `own`, if the shapes are equal."""
        return value

    def _load_weights(self, model: nn.Module, checkpoint: Any, path: Path, *, ema: bool = False) -> None:
        with naming(path):
            own, state = model.state_dict(), extract_state_dict(checkpoint, ema=ema)
            load_exact(model, {key: self.place(value, own.get(key)) for key, value in state.items()})

    def save(self, rest: dict[str, Any], paths: list[Path], done: Callable[[], None]) -> None:
        """Write `state_dict` and `rest` under each path, atomically and in this order; then rank 0 calls `done`.

        A strategy may return before that is done, and do it at the latest in its next `save` or `wait`.

        Raises:
            UserError: on every process, if a file cannot be written. Existing files stay complete.
        """
        state = self.state_dict()

        def write() -> None:
            for path in paths:
                save_atomic(state | rest, path)
            done()

        run_on_main(self.world, write)

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if any. Raises what `save` does."""

    def read(self, path: Path) -> Any:
        """The contents of a file or folder for `load_state_dict`, with `rest` of `save`. Raises `CheckpointError`."""
        return read(path)


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state from any device.

    Updates are fused if they are on the current device. Fused updates need states in the memory format of their
    parameters (convolution weights are channels-last on GPUs only) and step counts on their device.
    """
    for group, present in zip(saved["param_groups"], optimizer.param_groups):
        group["fused"] = present.get("fused")
    optimizer.load_state_dict(saved)
    optimizer = getattr(optimizer, "optim", optimizer)  # ZeRO keeps its shard in an optimizer of its own
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            states = optimizer.state.get(parameter, {})
            for name, value in states.items():
                if name == "step" and group.get("fused"):
                    states[name] = value.to(parameter.device)
                elif value is not None and value.shape == parameter.shape and value.stride() != parameter.stride():
                    states[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
