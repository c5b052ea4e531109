"""mmengine's runner with strict and safe checkpoints, training that can stop at any step, and several CPU processes."""

import os
import time
from pathlib import Path

import torch
from mmengine.dist import barrier, get_rank, master_only
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from ..checkpoint import extract_state_dict, load_exact, load_file, load_pretrained
from ..errors import CheckpointError
from ..files import atomic_path
from ..integrity import mark_verified
from ..preemption import StopRequest, ignore_in_worker
from ..zoo import local_checkpoint
from .bad_updates import SkipBadUpdates
from .checkpoints import (
    STOPPED,
    SafeCheckpointHook,
    find_checkpoints,
    newest_readable,
    note_latest,
    on_main,
    training_state,
)
from .plain_config import KEY, to_plain
from .resuming import LOOPS, EpochLoop, ResumableBatches, ResumableEarlyStopping, end_workers
from .sharding import distribute_optimizer_state, shard_fully, whole_state

__all__ = ["CheckedRunner", "bare"]

_OURS = {CheckpointHook: SafeCheckpointHook, EarlyStoppingHook: ResumableEarlyStopping}
_TIMEOUT = 600  # seconds without a batch until a worker process counts as hung


# Weights


def bare(model: nn.Module) -> nn.Module:
    """The detector inside wrappers of data parallelism and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _initialise(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Load what fits, and the backbone exactly; return notices. Raises `CheckpointError` for another backbone."""
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if not inside:  # a classifier, or a backbone alone
        return load_pretrained(model.backbone, state)
    load_exact(model.backbone, inside)
    own = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    fitting = {key: value for key, value in rest.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    notices = []
    if left := [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]:
        notices.append(
            f"{len(left)} entries keep their initial values, since the file has none of their shape: {left[0]}, ..."
        )
    if unused := [key for key in rest if key not in own]:
        notices.append(f"{len(unused)} entries of the file are not in the model: {unused[0]}, ...")
    return notices


class _Stopped(Exception):
    """The training was saved because it was asked to stop."""


class CheckedRunner(Runner):
    """mmengine's runner with this project's rules for checkpoints.

    `load_from` initialises (see `_initialise`); testing and resuming are strict. Resuming without a name uses the
    newest checkpoint that can be read. A training that receives a stop signal saves its place (see `resuming`).

    Attributes:
        stopped: whether `train` returned because of a stop signal.
        saved_iter: the iteration of the last checkpoint that can be resumed from.
    """

    stopped = False
    saved_iter = 0
    _testing = _stopping = False
    _stop_request: StopRequest | None = None  # while it trains

    def __init__(self, *args, **kwargs) -> None:
        # mmengine finds scopes, loggers and visualizers again by this name; two runs of one second would share them.
        name = kwargs.get("experiment_name") or Path(getattr(kwargs.get("cfg"), "filename", None) or "run").stem
        super().__init__(*args, **{**kwargs, "experiment_name": f"{name}_{os.getpid()}_{time.time_ns()}"})

    def register_hook(self, hook: Hook | dict, priority: int | str | None = None) -> None:
        """Register a hook; `SafeCheckpointHook` and `ResumableEarlyStopping` replace mmengine's."""
        for theirs, ours in _OURS.items():
            if isinstance(hook, dict) and hook.get("type") in (theirs, theirs.__name__, f"mmengine.{theirs.__name__}"):
                hook = {**hook, "type": ours}
        super().register_hook(hook, priority)

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build a visualizer under this run's name; mmengine would take that of an earlier run, with its folder."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, "name": self.experiment_name}
        return super().build_visualizer(visualizer)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes, also without a GPU, where mmengine does not."""
        on_gpu, shards = torch.cuda.is_available(), self.cfg.get("shard") == "fsdp"
        if not self.distributed or (on_gpu and not shards):
            return super().wrap_model(model_wrapper_cfg, model)
        if not on_gpu:
            model = revert_sync_batchnorm(model)  # SyncBN has no CPU version
        if shards:  # in `build_optim_wrapper`
            return model
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(module=model, broadcast_buffers=False, find_unused_parameters=unused)

    def _init_model_weights(self) -> None:
        if not isinstance(self.model, FSDPModule):
            super()._init_model_weights()

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        """Build the optimizer; `--shard` decides which parts of its state and of the model this process has."""
        mode = self.cfg.get("shard")
        if mode == "zero" and isinstance(optim_wrapper, dict):
            optimizer = optim_wrapper["optimizer"]
            sharded = {**optimizer, "type": "ZeroRedundancyOptimizer", "optimizer_type": optimizer["type"]}
            optim_wrapper = {**optim_wrapper, "optimizer": sharded}
        if mode == "fsdp" and not isinstance(self.model, FSDPModule):
            self._init_model_weights()  # of the whole model
            shard_fully(self.model, unused_parameters=self.cfg.get("find_unused_parameters", False))
        return super().build_optim_wrapper(optim_wrapper)

    @property
    def shared_seed(self) -> int:
        """The run's seed, the same in all processes."""
        return self.seed - (get_rank() if self._randomness_cfg.get("diff_rank_seed") else 0)

    @property
    def is_training(self) -> bool:
        """Whether `train` is running."""
        return self._stop_request is not None

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader with a time-out, whose workers ignore the signals that the main process handles."""
        if isinstance(dataloader, dict):
            dataloader = {"worker_init_fn": {"type": ignore_in_worker}, **dataloader}
            dataloader.pop("disable_subprocess_warning", None)  # an argument of mmengine's own worker function
            if dataloader.get("num_workers"):
                dataloader.setdefault("timeout", _TIMEOUT)
        return Runner.build_dataloader(dataloader, *args, **kwargs)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop; those of `resuming`, which start and stop at any step, replace mmengine's two."""
        names = {True: "EpochBasedTrainLoop", False: "IterBasedTrainLoop"}
        name = (loop.get("type") or names[loop.get("by_epoch", True)]) if isinstance(loop, dict) else None
        if name not in LOOPS or not isinstance(self._train_dataloader, dict):
            return super().build_train_loop(loop)
        loader = dict(self._train_dataloader)
        parts = {"inner": loader.pop("batch_sampler", None), "drop_last": loader.pop("drop_last", False)}
        loader["batch_sampler"] = {"type": ResumableBatches, "endless": LOOPS[name].by_iter, **parts}
        self._train_dataloader = loader
        options = {key: value for key, value in loop.items() if key != "by_epoch"}
        return super().build_train_loop({**options, "type": LOOPS[name]})

    def train(self) -> nn.Module:
        """Train, or resume, until the end or until SIGTERM or SIGUSR1."""
        if not any(isinstance(hook, SkipBadUpdates) for hook in self.hooks):
            self.register_hook(SkipBadUpdates())
        with StopRequest() as self._stop_request:
            try:
                return super().train()
            except _Stopped:
                self.stopped = True
                self.logger.info(f"stop signal: saved at iteration {self.iter}; start again to resume")
                self.call_hook("after_run")
                return self.model
            finally:
                self._stop_request = None
                end_workers(self._train_loop, self._val_loop)

    def stop_if_asked(self) -> None:
        """After a step: save and stop if a signal has arrived and no gradients are accumulated."""
        self._stopping |= self._stop_request.agreed()
        if self._stopping and self.iter % self.cfg.optim_wrapper.get("accumulative_counts", 1) == 0:
            self.save_place()
            raise _Stopped

    def save_place(self) -> None:
        """Save the training at this step, also in mid-epoch, unless it is already saved."""
        if self.saved_iter == self.iter:
            return
        loop = self.train_loop
        meta = {"epoch": loop.epoch, "iter": loop.iter}
        if isinstance(loop, EpochLoop):
            meta["place"] = [loop.batch, len(loop.dataloader)]
        schedulers = self.param_schedulers is not None
        self.save_checkpoint(self.work_dir, STOPPED, save_param_scheduler=schedulers, meta=meta, by_epoch=False)
        note_latest(self.work_dir, Path(self.work_dir, STOPPED))
        self.saved_iter = self.iter
        barrier()

    def test(self) -> dict[str, float]:
        """Test the weights of `load_from` and return the metrics."""
        self._testing = True
        return super().test()

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Load a file's weights into the model; return its content. Raises `CheckpointError` if it does not fit."""
        path = local_checkpoint(str(filename))
        on_main(lambda: isinstance(load_file(path), dict))  # the main process checks the file; only a bool is sent
        mark_verified(path)
        content = load_file(path)
        if self._resume:
            content = training_state(content, filename)
            if isinstance(self.train_loop, EpochLoop):  # another number of processes changes the batches
                batch, batches = content["meta"].get("place", [0, 1])
                self.train_loop.batch = batch * len(self.train_loop.dataloader) // batches
            self.saved_iter = content["meta"]["iter"]
            if "optimizer" in content:
                parts = distribute_optimizer_state(self.optim_wrapper.optimizer, content["optimizer"])
                content = {**content, "optimizer": parts}
        extra = content if isinstance(content, dict) and "state_dict" in content else {}
        checkpoint = {**extra, "state_dict": extract_state_dict(content)}
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # EMAHook reads its average
        model = bare(self.model)
        try:
            if self._testing or self._resume:
                load_exact(model, checkpoint["state_dict"])
            else:
                for notice in _initialise(model, checkpoint["state_dict"]):
                    self.logger.info(f"{filename}: {notice}")
        except CheckpointError as error:
            raise CheckpointError(f"{filename}: {error}") from None
        return checkpoint

    def load_or_resume(self) -> None:
        """Load or resume what the configuration says, once."""
        if self._has_loaded or not self._resume or self._load_from is not None:
            return super().load_or_resume()

        def find() -> Path | None:
            newest = newest_readable(find_checkpoints(self.cfg), self.logger.warning)
            if newest is not None:
                note_latest(self.work_dir, newest)
            return newest

        path = on_main(find)
        if path is None:
            self.logger.info(f"nothing to resume in {self.work_dir}; starting from scratch")
            return None
        self.logger.info(f"resuming from {path}; to start anew, choose another --output or delete this one")
        self.resume(str(path))
        self._has_loaded = True

    def save_checkpoint(self, out_dir: str, filename: str, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Save as mmengine does, but atomically: the file gets its name when it is complete. All processes call it."""
        with whole_state(bare(self.model), *[self.optim_wrapper] * save_optimizer):
            self._write(out_dir, filename, *args, save_optimizer=save_optimizer, **kwargs)

    @master_only
    def _write(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        kwargs["meta"] = {**(kwargs.get("meta") or {}), KEY: to_plain(self.cfg)}  # to build the model from
        if "://" in str(out_dir):
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        with atomic_path(Path(out_dir, filename)) as temporary:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
