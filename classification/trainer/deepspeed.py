"""DeepSpeed's ZeRO: optimizer, gradients (stage 2) and weights (stage 3) are spread over the processes."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from internimage.checkpoint import extract_state_dict, load_exact, load_file, naming, save_atomic
from internimage.errors import CheckpointError, UserError
from internimage.files import publish_folder, remove, temporary_name

from .distributed import World, gather, run_on_main
from .strategy import Strategy

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SHARDS", "DeepSpeedStrategy"]

SHARDS = ".deepspeed"  # suffix of the folders


class DeepSpeedStrategy(Strategy):
    """DeepSpeed's ZeRO stages 1, 2 and 3, with or without offload.

    A checkpoint is a plain file with the whole fp32 weights and averages, which all other commands read, and beside it
    a folder of the same name with DeepSpeed's shards of the optimizer, which resuming needs. Best checkpoints have no
    folder. To evaluate, each process builds the whole model.
    """

    def __init__(self, accelerator: "Accelerator", world: World, dtype: torch.dtype | None = None) -> None:
        super().__init__(world, dtype)
        self._accelerator = accelerator
        self._stage = accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]
        self._averages_file = f"averages_{world.rank}.pt"
        self._layout = {"ZeRO stage": self._stage, "processes": world.size}

    def prepare(
        self,
        model: nn.Module,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        ema_decay: float | None = None,
    ) -> None:
        # A copy without memory for its parameters, which reuses what `memo` says.
        memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
        self._skeleton = copy.deepcopy(model, memo)
        self.network, self.optimizer = self._accelerator.prepare(model, build_optimizer(model))
        self.model = self.network.module
        if self.dtype is not None:
            self.model.register_forward_pre_hook(self._cast)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=False)  # DeepSpeed has its own
        self.ema = None
        if ema_decay is not None:
            shards = [shard.detach().clone() for shard in self._masters()]
            # `module` has the averaged buffers, and no memory for parameters.
            self.ema = SimpleNamespace(module=copy.deepcopy(self._skeleton), shards=shards, decay=ema_decay)

    def _cast(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.to(self.dtype) for x in inputs)

    def _masters(self) -> list[Tensor]:
        """This process's part of the fp32 weights: flat tensors, which DeepSpeed's optimizer updates."""
        optimizer = self.network.optimizer
        return optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups

    def _averages(self) -> list[Tensor]:
        """This process's part of the averages, and the averaged buffers."""
        return [*self.ema.shards, *self.ema.module.buffers()]

    @property
    def skips_overflow(self) -> bool:
        return self.dtype == torch.float16

    def accumulate(self, updates: bool) -> AbstractContextManager:
        self.network.set_gradient_accumulation_boundary(updates)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.network.backward(loss, scale_wrt_gas=False)

    def update(self, max_norm: float | None) -> Tensor:
        self.network.step()  # also clips: to `max_norm`, see `_read_deepspeed_settings`
        norm = self.network.get_global_grad_norm()  # of all processes; a number for an update that it left out
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)
        if not norm.isfinite() and not self.network.optimizer.overflow:
            raise UserError(
                "the gradient is not finite, and DeepSpeed has updated the weights with it; start again to resume from "
                'the last checkpoint, with "check_grad_overflow": true in its file'
            )
        return norm

    @torch.no_grad()
    def average(self) -> None:
        if self.ema is None:
            return
        for average, value in zip(self._averages(), [*self._masters(), *self.model.buffers()]):
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - self.ema.decay)
            else:  # a batch counter
                average.copy_(value)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averages in the place of the fp32 weights. The weights of the forward pass do not change."""
        kept = [weights.clone() for weights in self._masters()]
        for values in (self.ema.shards, kept):
            for weights, value in zip(self._masters(), values):
                weights.data.copy_(value)
            if values is not kept:
                yield

    def _whole_weights(self, averaged: bool) -> Iterator[tuple[str, Tensor]]:
        """Names and fp32 values of all parameters, one at a time on every process, then the buffers."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        with self._averaged() if averaged else nullcontext(), torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    yield name, safe_get_full_fp32_param(parameter)
                else:
                    with deepspeed.zero.GatheredParameters([parameter]):
                        yield name, parameter.detach().float()
        yield from (self.ema.module if averaged else self.model).named_buffers()

    @contextmanager
    def evaluation(self) -> Iterator[list[nn.Module | None]]:
        yield [self._whole_model(averaged=False), self._whole_model(averaged=True) if self.ema is not None else None]

    def _whole_model(self, averaged: bool) -> nn.Module:
        module = copy.deepcopy(self._skeleton).to(self.dtype or torch.float32).to_empty(device=self.world.device)
        state = module.state_dict()  # shares memory with the module
        for name, value in self._whole_weights(averaged):
            state[name].copy_(value)
        return module

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for key, averaged in [("model", False)] + [("model_ema", True)] * (self.ema is not None):
            state[key] = {}
            for name, value in self._whole_weights(averaged):
                if self.world.is_main:
                    state[key][name] = value.to("cpu", copy=True)
        return state | {"optimizer": self._layout, "scaler": {}} if self.world.is_main else {}

    def load_state_dict(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        folder, saved = path.with_suffix(SHARDS), checkpoint["optimizer"]
        otherwise = "or load its weights with --pretrained"
        if saved.keys() != self._layout.keys():
            raise CheckpointError(f"{path} is not of a run with DeepSpeed; resume it with train.py, {otherwise}")
        if saved != self._layout:
            raise CheckpointError(f"{path} is of {saved}, but this run of {self._layout}; use the same, {otherwise}")
        if not folder.is_dir():
            raise CheckpointError(f"{path} needs the folder {folder.name} beside it; restore the folder, {otherwise}")
        with naming(path):
            load_exact(copy.deepcopy(self._skeleton), extract_state_dict(checkpoint))
        try:
            self.network.load_checkpoint(str(folder.parent), tag=folder.name)
        except Exception as error:  # DeepSpeed raises many types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"DeepSpeed cannot load {folder} ({reason}); resume from another") from error
        if self.ema is not None:
            for average, saved in zip(self._averages(), load_file(folder / self._averages_file)):
                average.copy_(saved)

    def save(self, rest: dict[str, Any], paths: list[Path], done: Callable[[], None]) -> None:
        state = self.state_dict()
        numbered, folder = not paths[-1].stem.endswith("best"), paths[-1].with_suffix(SHARDS)
        unfinished = run_on_main(self.world, lambda: temporary_name(folder))
        try:
            if numbered:
                self.network.save_checkpoint(str(folder.parent), tag=unfinished.name, save_latest=False)
                if self.ema is not None:
                    torch.save(self._averages(), unfinished / self._averages_file)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write {folder}: {error}; free space there, then start again") from error
        gather(None)  # all have written their part

        def write() -> None:
            if numbered:
                publish_folder(unfinished, folder)
            for each in paths:
                save_atomic(state | rest, each)
            done()
            for each in folder.parent.glob(f"*{SHARDS}"):
                if not each.with_suffix(".pth").exists():
                    remove(each)

        run_on_main(self.world, write)
