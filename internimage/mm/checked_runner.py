"""mmengine's runner by our rules: strict and safe checkpoints, trainings that can stop anywhere, CPUs like GPUs."""

import atexit
import multiprocessing
from pathlib import Path

import torch
from mmengine.dist import barrier, get_rank, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoint import extract_state_dict, load_exact, load_file, load_pretrained
from ..errors import CheckpointError
from ..files import atomic_path
from ..integrity import mark_verified
from ..preemption import StopRequest, ignore_in_worker
from ..zoo import local_checkpoint
from .checkpoints import (
    STOPPED,
    SafeCheckpointHook,
    find_checkpoints,
    newest_readable,
    note_latest,
    on_main,
    training_state,
)
from .resuming import LOOPS, EpochLoop, ResumableBatches

__all__ = ["CheckedRunner", "bare"]

_TIMEOUT = 600  # seconds without a batch, after which a worker process is taken to hang


# Weights


def bare(model: nn.Module) -> nn.Module:
    """The detector inside wrappers of data parallelism and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _initialise(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Start a training from a file: the backbone must fit, of the rest what fits is taken; return notices.

    Raises:
        CheckpointError: the file has another backbone, or none.
    """
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
        notices.append(f"{len(left)} entries of other shape, or not in the file, keep initial values: {left[0]}, ...")
    if unused := [key for key in rest if key not in own]:
        notices.append(f"{len(unused)} entries of the file are not in the model: {unused[0]}, ...")
    return notices


@atexit.register
def _end_workers() -> None:
    """End what is left of the data loaders' workers, which ignore the signal that Python ends them with."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class _Stopped(Exception):
    """The training was saved because it was asked to stop."""


class CheckedRunner(Runner):
    """mmengine's runner, reading and writing checkpoints by our rules.

    `load_from` initialises (see `_initialise`); testing and resuming are strict. Resuming without a name takes the
    newest checkpoint that can be read. A training that is asked to stop saves its place (see `resuming`).

    Attributes:
        stopped: whether `train` returned because the training was asked to stop.
        saved_iter: the iteration of the last checkpoint that a training can go on from.
    """

    stopped = False
    saved_iter = 0
    _testing = _stopping = False
    _stop_request: StopRequest | None = None  # while it trains

    def register_hook(self, hook: Hook | dict, priority: int | str | None = None) -> None:
        """Register a hook; for mmengine's checkpoint hook, ours with the same options."""
        if isinstance(hook, dict) and hook.get("type") in ("CheckpointHook", "mmengine.CheckpointHook", CheckpointHook):
            hook = {**hook, "type": SafeCheckpointHook}
        super().register_hook(hook, priority)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes, which mmengine does on GPUs only."""
        if not self.distributed or torch.cuda.is_available():
            return super().wrap_model(model_wrapper_cfg, model)
        unused = self.cfg.get("find_unused_parameters", False)
        model = revert_sync_batchnorm(model)  # SyncBN has no CPU version
        return MMDistributedDataParallel(module=model, broadcast_buffers=False, find_unused_parameters=unused)

    @property
    def shared_seed(self) -> int:
        """The run's seed, the same in all processes."""
        return self.seed - (get_rank() if self._randomness_cfg.get("diff_rank_seed") else 0)

    @property
    def is_training(self) -> bool:
        """Whether `train` is at work."""
        return self._stop_request is not None

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader whose workers leave signals to the main process, and that does not wait for them forever."""
        if isinstance(dataloader, dict):
            dataloader = {"worker_init_fn": {"type": ignore_in_worker}, **dataloader}
            dataloader.pop("disable_subprocess_warning", None)  # goes with mmengine's own function for workers
            if dataloader.get("num_workers"):
                dataloader.setdefault("timeout", _TIMEOUT)
        return Runner.build_dataloader(dataloader, *args, **kwargs)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop; in the place of mmengine's two, ours, which can begin and stop anywhere."""
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
        """Train, from where the resumed checkpoint was, until the end or until SIGTERM or SIGUSR1 asks to stop."""
        with StopRequest() as self._stop_request:
            try:
                return super().train()
            except _Stopped:
                self.stopped = True
                self.logger.info(f"asked to stop: saved at iteration {self.iter}; --resume goes on from there")
                self.call_hook("after_run")
                return self.model
            finally:
                self._stop_request = None

    def stop_if_asked(self) -> None:
        """After a step: save and end the training if it was asked to stop, as soon as no gradients are accumulated."""
        self._stopping |= self._stop_request.agreed()
        if self._stopping and self.iter % self.cfg.optim_wrapper.get("accumulative_counts", 1) == 0:
            self.save_place()
            raise _Stopped

    def save_place(self) -> None:
        """Save the training where it is, in the middle of an epoch, too, unless that has happened."""
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
        """Load the weights of a file into the model and return the whole file.

        Raises:
            CheckpointError: it cannot be read or does not fit.
        """
        path = local_checkpoint(str(filename))

        def check() -> None:
            load_file(path)

        on_main(check)
        mark_verified(path)
        content = load_file(path)
        if self._resume:
            content = training_state(content, filename)
            if isinstance(self.train_loop, EpochLoop):  # with another number of processes the epoch has other batches
                batch, batches = content["meta"].get("place", [0, 1])
                self.train_loop.batch = batch * len(self.train_loop.dataloader) // batches
            self.saved_iter = content["meta"]["iter"]
        extra = content if isinstance(content, dict) and "state_dict" in content else {}
        checkpoint = {**extra, "state_dict": extract_state_dict(content)}
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)  # EMAHook takes its average from it
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
        """Load or resume what the configuration says, unless that has happened."""
        if self._has_loaded or not self._resume or self._load_from is not None:
            return super().load_or_resume()

        def find() -> Path | None:
            newest = newest_readable(find_checkpoints(self.cfg), self.logger.warning)
            if newest is not None:
                note_latest(self.work_dir, newest)
            return newest

        path = on_main(find)
        if path is None:
            self.logger.info(f"nothing to resume in {self.work_dir}; starting anew")
            return None
        self.logger.info(f"resuming from {path}")
        self.resume(str(path))
        self._has_loaded = True

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save as mmengine does, but under the final name only once the file is whole."""
        if "://" in str(out_dir):
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        with atomic_path(Path(out_dir, filename)) as temporary:
            super().save_checkpoint(out_dir, temporary.name, *args, **kwargs)
