"""Processes and devices of a run.

A run has one process, or several started by torchrun (`dist_train.sh`) or Slurm's srun (`slurm_train.sh`). Each process
uses one GPU (NCCL) if CUDA is available, else the CPU (gloo).
"""

import inspect
import os
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from internimage.errors import UserError

__all__ = ["World", "start", "gather", "run_on_main", "sum_over_processes", "wrap_model"]

T = TypeVar("T")

# Long enough to write the checkpoint of a model with 3 B parameters, short enough to end the job if a process is lost.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """Rank and device of this process, and the number of processes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start(launcher: str = "auto", local_rank: int = 0, *, cpu_tensors: bool = False) -> World:
    """Initialize torch.distributed if a launcher started several processes.

    Args:
        launcher: `none`, `pytorch` (torchrun), `slurm`, or `auto` to detect it. torchrun's variables take precedence,
            because srun may start torchrun. Slurm's are used only inside an srun step: `SLURM_NTASKS` is also set in a
            batch script, where only one process runs.
        local_rank: number of this process on its machine, if the environment does not have it.
        cpu_tensors: also let processes with GPUs exchange tensors in CPU memory (gloo).

    Raises:
        UserError: the launcher's variables are missing or invalid, or there are more processes than GPUs.
    """
    env = os.environ
    if launcher == "auto":
        if "RANK" in env and "WORLD_SIZE" in env:
            launcher = "pytorch"
        elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
            launcher = "slurm"
    rank, size = 0, 1
    try:
        if launcher == "pytorch":
            rank, size, local_rank = int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", local_rank))
        elif launcher == "slurm":
            size = int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"])
            rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
            if size > 1 and "MASTER_ADDR" not in env:
                env["MASTER_ADDR"] = _first_slurm_host()
            env.setdefault("MASTER_PORT", "29500")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the launcher's environment is incomplete or not numeric ({error}); "
            "start with dist_train.sh or slurm_train.sh, or a single process with --launcher none"
        ) from None

    device = _device(local_rank)
    if size > 1:
        gpu = device.type == "cuda"
        on_gpu = "cpu:gloo,cuda:nccl" if cpu_tensors else "nccl"
        dist.init_process_group(
            on_gpu if gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT, device_id=device if gpu else None
        )
    return World(rank, size, device)


def run_on_main(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0 while the others wait, and return its (picklable) result on every process.

    Also a barrier. If `work` fails, every process raises an error, so none waits forever.

    Raises:
        UserError: on every process, if `work` raised one.
        RuntimeError: on the other processes, if `work` raised anything else on rank 0.
    """
    if world.size == 1:
        return work()
    message: list[object] = [None, None]  # result, error
    failure = None
    if world.is_main:
        try:
            message[0] = work()
        except Exception as error:
            failure = error
            message[1] = error if isinstance(error, UserError) else RuntimeError(f"rank 0 failed: {error!r}")
    dist.broadcast_object_list(message, src=0, device=world.device)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise message[1]
    return message[0]


def gather(value: T) -> list[T]:
    """The (picklable) value of every process, by rank, on every process. Also a barrier."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(world: World, values: torch.Tensor) -> torch.Tensor:
    """Sum `values` (any shape; on `world.device`) elementwise over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def wrap_model(world: World, model: nn.Module) -> DistributedDataParallel:
    """DistributedDataParallel around `model`, without broadcasting buffers (running statistics) from rank 0.

    The engine averages them over all processes at the end of an epoch; broadcasting would lose those of other ranks.
    """
    # torch 2.14 renamed the argument.
    known = inspect.signature(DistributedDataParallel).parameters
    keep = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    # Appears for 1 x 1 and depthwise kernels in channels-last layout; the gradients are copied and correct.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None, **keep)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        # Slurm may show each task only its own GPU.
        if count == 1 and "SLURM_PROCID" in os.environ:
            local_rank = 0
        else:
            raise UserError(f"process {local_rank} of this node has no GPU: {count} visible; start at most {count}")
    torch.cuda.set_device(local_rank)
    torch.backends.cudnn.benchmark = True  # one image size throughout a run
    return torch.device("cuda", local_rank)


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
    try:
        out = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise UserError(f"scontrol could not resolve the Slurm node list {nodes!r}; set MASTER_ADDR yourself") from None
    return out.stdout.split()[0]
