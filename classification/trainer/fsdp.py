"""FSDP2: every process holds a shard of each parameter, of its gradient, optimizer state and average."""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from internimage.errors import UserError
from internimage.files import temporary_name
from internimage.layers import Block
from internimage.shards import gather_whole, own_part

from .dcp import complete, read, split, why
from .distributed import World, run_on_main
from .evaluation import in_step
from .strategy import Strategy

__all__ = ["FullyShard"]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class FullyShard(Strategy):
    """FSDP2's `fully_shard` of each block, then of the rest.

    The model may still be on the CPU: each block moves to the device as it is sharded.

    Args:
        world: rank, number of processes and device; one process becomes a process group of its own.
        dtype: of autocast; parameters are gathered in it, gradients are reduced in fp32.
        cpu_offload: keep shards and optimizer state in CPU memory.
        folders: write sharded checkpoints (`dcp`), while training goes on, instead of plain files.
    """

    def __init__(
        self, world: World, dtype: torch.dtype | None = None, *, cpu_offload: bool = False, folders: bool = False
    ) -> None:
        super().__init__(world, dtype)
        if not dist.is_initialized():
            backend = "gloo" if world.device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.mesh = init_device_mesh(world.device.type, (world.size,))
        self.offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if cpu_offload else OffloadPolicy()
        self.suffix = "" if folders else ".pth"
        # The collectives of a checkpoint in a thread must not mix with those of the training.
        self._group = dist.new_group(backend="gloo") if folders else None
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[Future, Path] | None = None

    def prepare(self, *arguments: Any, **options: Any) -> None:
        super().prepare(*arguments, **options)
        if isinstance(self.offload, CPUOffloadPolicy):
            # The first tensor says where the scale is. From a GPU, the scaler would copy it to the gradients on the CPU
            # without waiting for the copy (torch 2.14).
            self.scaler.scale(torch.zeros(()))

    def spread(self) -> nn.Module:
        full = MixedPrecisionPolicy()
        half = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        # Batch norms keep fp32 weights like their statistics, as under autocast alone.
        kinds = [(_BatchNorm, full)] * (self.dtype is not None) + [(Block, half)]
        for model in self.models:
            modules = list(model.modules())
            units = [(module, policy) for kind, policy in kinds for module in modules if isinstance(module, kind)]
            for module, policy in (*units, (model, half)):
                fully_shard(module, mesh=self.mesh, mp_policy=policy, offload_policy=self.offload)
        return self.model

    def accumulate(self, updates: bool) -> AbstractContextManager:
        return nullcontext()  # gradients are reduced after every batch, so that none is kept whole

    @torch.no_grad()
    def average(self) -> None:
        if self.ema is None:
            return
        # Of shards: timm's update does not accept a mixture of DTensors (parameters) and tensors (buffers).
        both = (self.ema.module, self.model)
        pairs = list(zip(*([_local(value) for value in model.state_dict().values()] for model in both)))
        get_ema_multi_avg_fn(self.ema.decay)(*zip(*(pair for pair in pairs if pair[0].is_floating_point())), None)
        for average, value in pairs:
            if not average.is_floating_point():  # a batch counter
                average.copy_(value)

    def batches(self, batches: Iterable) -> Iterable:
        return in_step(batches)

    def state_dict(self) -> dict[str, Any]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whole tensors on rank 0 only
        state = {name: get_model_state_dict(model, options=options) for name, model in self._named()}
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            number: {
                name: gather_whole(value, self.world.is_main) if isinstance(value, DTensor) else value
                for name, value in states.items()
            }
            for number, states in optimizer["state"].items()
        }
        return state | {"optimizer": optimizer, "scaler": self.scaler.state_dict()}

    def _named(self) -> Iterable[tuple[str, nn.Module]]:
        return zip(("model", "model_ema"), self.models)

    def place(self, value: Any, own: Tensor) -> Any:
        return own_part(value, own)

    def save(self, rest: dict[str, Any], paths: list[Path], done: Callable[[], None]) -> None:
        self.wait()
        if self.suffix:
            super().save(rest, paths, done)
            return
        state = {name: model.state_dict() for name, model in self._named()}
        state |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()} | rest
        shards, others = split(state)
        others = copy.deepcopy(others)
        folder = run_on_main(self.world, lambda: temporary_name(paths[-1]))
        written = dcp.async_save(shards, storage_writer=dcp.FileSystemWriter(folder), process_group=self._group)

        def finish() -> None:
            written.result()
            if self.world.is_main:
                complete(folder, others, paths)
                done()

        self._pending = self._thread.submit(finish), paths[-1]

    def wait(self) -> None:
        if self._pending is None:
            return
        (future, path), self._pending = self._pending, None

        def result() -> None:
            try:
                future.result()
            except (Exception, dcp.CheckpointException) as error:  # the latter is not an Exception
                raise UserError(
                    f"cannot write {path}: {why(error)}; free space there or change permissions, then start again"
                ) from error

        run_on_main(self.world, result)
        future.exception()

    def read(self, path: Path) -> Any:
        own = {f"{name}/{key}": value for name, model in self._named() for key, value in model.state_dict().items()}
        learning = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        own |= {f"optimizer/state/{number}": parameter for number, parameter in enumerate(learning)}

        def like(key: str) -> DTensor | None:
            return own.get(key, own.get(key.rpartition("/")[0]))

        return read(path, like)
