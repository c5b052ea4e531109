"""The state of a run and its checkpoints: write atomically, rotate, find and restore.

File names and keys are the original project's (`ckpt_epoch_N.pth`, `ckpt_epoch_best.pth`; model, optimizer,
lr_scheduler, scaler, epoch, max_accuracy, config, model_ema): each project reads the files of the other. N is the last
finished epoch, counted from 0. `ckpt_epoch_N_step_S.pth` is from the middle of epoch N, after S of its steps; it also
has the key `progress`, and is deleted after the next checkpoint. A sharded checkpoint (`dcp`) is a folder with the same
name without `.pth`.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.scheduler.scheduler import Scheduler
from torch import nn

from internimage.checkpoint import extract_state_dict, load_exact, load_pretrained, naming
from internimage.errors import CheckpointError
from internimage.files import remove, remove_leftovers
from internimage.integrity import mark_verified
from internimage.zoo import local_checkpoint

from .dcp import read, verify
from .distributed import World, run_on_main
from .strategy import Strategy

__all__ = [
    "RunState",
    "find_latest",
    "initialise",
    "list_checkpoints",
    "load_for_evaluation",
    "locate",
    "restore",
    "save",
]

BEST, BEST_EMA = "ckpt_epoch_best", "ckpt_epoch_ema_best"


@dataclass
class RunState:
    """Everything that training changes: what the strategy holds, and the rest."""

    strategy: Strategy
    scheduler: Scheduler
    epoch: int = -1  # the last finished epoch
    progress: dict[str, Any] | None = None  # of the next epoch, if it has started: see Trainer._save_progress
    class_names: list[str] = field(default_factory=list)
    layout: dict[str, int] = field(default_factory=dict)  # must be equal to resume in the middle of an epoch
    max_accuracy: float = -1.0  # below any accuracy, so that the first evaluation is the best so far
    max_accuracy_ema: float = -1.0

    def rest(self, config_yaml: str) -> dict[str, Any]:
        """What a checkpoint has beside the strategy's entries: plain types and small tensors only."""
        state = {
            "lr_scheduler": self.scheduler.state_dict(),
            "epoch": self.epoch,
            "max_accuracy": self.max_accuracy,
            "config": config_yaml,
            "class_names": self.class_names,
        }
        if self.strategy.ema is not None:
            state["max_accuracy_ema"] = self.max_accuracy_ema
        return state | ({"progress": self.progress} if self.progress is not None else {})

    @property
    def file_name(self) -> str:
        """Name of the numbered checkpoint."""
        step = f"{self.epoch + 1}_step_{self.progress['step']}" if self.progress is not None else self.epoch
        return f"ckpt_epoch_{step}{self.strategy.suffix}"


_NUMBERED = re.compile(r"ckpt_epoch_(\d+)(?:_step_(\d+))?(?:\.pth)?")


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints of a run, newest first."""
    found = [(match, path) for path in folder.iterdir() if (match := _NUMBERED.fullmatch(path.name))]

    def place(item: tuple[re.Match, Path]) -> tuple[int, int]:
        epoch, step = item[0].groups()
        return (int(epoch), int(step)) if step else (int(epoch) + 1, 0)  # without a step, the epoch is finished

    return [path for _, path in sorted(found, key=place, reverse=True)]


def save(
    folder: Path, state: RunState, config_yaml: str, *, numbered: bool, best: bool, best_ema: bool, keep: int
) -> None:
    """Write the checkpoint under each requested name, then delete all but the `keep` newest of finished epochs.

    All processes must call this function.

    Raises:
        UserError: on every process, if a file cannot be written. Existing files stay complete.
    """
    # The numbered one last: a run killed in between repeats the epoch and writes the best ones again.
    current, suffix = state.file_name, state.strategy.suffix
    names = [BEST + suffix] * best + [BEST_EMA + suffix] * best_ema + [current] * numbered
    if not names:
        return

    def rotate() -> None:
        remove_leftovers(folder)
        for name in names:  # the same in the other form, from before the run changed it
            remove(folder / (name.removesuffix(suffix) if suffix else f"{name}.pth"))
        checkpoints = list_checkpoints(folder) if numbered else []
        finished = [path for path in checkpoints if "_step_" not in path.name]
        for path in checkpoints:
            if path.name != current and path not in finished[:keep]:
                remove(path)

    state.strategy.save(state.rest(config_yaml), [folder / name for name in names], rotate)


def find_latest(world: World, folder: Path, log: Callable[[str], None]) -> Path | None:
    """The newest readable checkpoint of `folder`; None if it has no checkpoints. Log each unreadable one.

    Raises:
        CheckpointError: none of the checkpoints can be read. A new run would overwrite them.
    """

    def find() -> Path | None:
        checkpoints = list_checkpoints(folder)
        for path in checkpoints:
            try:
                verify(path)
                return path
            except CheckpointError as error:
                log(f"skipping an unreadable checkpoint: {error}")
        if checkpoints:
            raise CheckpointError(
                f"none of the {len(checkpoints)} checkpoints in {folder} can be read; "
                "move them to another folder to start a new run, or pass another checkpoint with --resume"
            )
        return None

    path = run_on_main(world, find)
    if path is not None:
        mark_verified(path)
    return path


def restore(state: RunState, path: Path, log: Callable[[str], None]) -> None:
    """Load a training checkpoint into `state`, strictly.

    The schedule is recomputed from the configuration and the number of updates; a difference to the one in the file
    (for example, more epochs) is logged.

    Raises:
        CheckpointError: anything is missing or does not fit the model or the optimizer.
    """
    checkpoint = state.strategy.read(path)
    needed = ["model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy"]
    needed += ["model_ema"] if state.strategy.ema is not None else []
    missing = [key for key in needed if key not in checkpoint] if isinstance(checkpoint, dict) else needed
    if missing:
        raise CheckpointError(
            f"{path} is not a training checkpoint of this configuration: it lacks {', '.join(missing)}; "
            "resume from one that train.py wrote with the same EMA setting, or load its weights with --pretrained"
        )
    if (saved := checkpoint.get("class_names")) and state.class_names and saved != state.class_names:
        raise CheckpointError(
            f"{path} is of other classes ({_some(saved)}) than the data set ({_some(state.class_names)}); choose "
            "another folder with --tag NAME, or load its weights with --pretrained"
        )
    state.strategy.load_state_dict(checkpoint, path)
    if checkpoint["lr_scheduler"] != state.scheduler.state_dict():
        log("the learning-rate schedule differs from the checkpoint's; using the one of the configuration")
    state.epoch = checkpoint["epoch"]
    state.max_accuracy = checkpoint["max_accuracy"]
    state.max_accuracy_ema = checkpoint.get("max_accuracy_ema", -1.0)
    if "progress" in checkpoint:
        state.progress = copy.deepcopy(checkpoint["progress"])
        if not isinstance(state.progress, dict) or state.progress.get("layout") != state.layout:
            raise CheckpointError(
                f"{path} is from the middle of an epoch and needs the same number of processes, batch size, "
                f"accumulation and images (now {state.layout}); use these, or delete the file to resume from the end "
                "of the previous epoch"
            )


def _some(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def load_for_evaluation(model: nn.Module, path: Path, *, ema: bool = False) -> bool:
    """Load the weights (with `ema`, the averaged weights) of any released or own checkpoint, strictly.

    Returns:
        False if the file has no averaged weights; the model is then unchanged.
    """
    checkpoint = read(path)
    if ema and not (isinstance(checkpoint, dict) and "model_ema" in checkpoint):
        return False
    with naming(path):
        load_exact(model, extract_state_dict(checkpoint, ema=ema))
    return True


def locate(world: World, name: str) -> Path:
    """`internimage.zoo.local_checkpoint`, or a run's newest checkpoint; rank 0 verifies it for all processes.

    Raises:
        UserError: on every process; see `local_checkpoint` and `internimage.checkpoint.load_file`.
    """

    def find() -> Path:
        path = local_checkpoint(name)
        if path.is_dir() and (found := list_checkpoints(path)):  # the folder of a run
            path = found[0]
        verify(path)
        return path

    path = run_on_main(world, find)
    if not path.exists():  # on another machine, without a shared disk
        return local_checkpoint(name)
    mark_verified(path)
    return path


def initialise(model: nn.Module, path: Path, log: Callable[[str], None], *, rand_init_head: bool = False) -> None:
    """Load the weights of a pretrained file (`internimage.checkpoint.load_pretrained`); log the parts not loaded.

    Raises:
        CheckpointError: the file does not have this model's backbone.
    """
    with naming(path):
        for notice in load_pretrained(model, extract_state_dict(read(path)), rand_init_head=rand_init_head):
            log(f"{path}: {notice}")
