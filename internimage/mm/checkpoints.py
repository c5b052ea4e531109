"""Checkpoints of mmengine runs: written atomically, deleted only after newer ones are complete, found, and checked.

mmengine's own hook deletes the oldest checkpoint before it writes the new one, under its final name, and writes the
name to `last_checkpoint`: a run that is killed meanwhile may leave a truncated file and the name of a deleted one.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import CheckpointLoader, Runner

from ..checkpoint import load_file
from ..errors import CheckpointError, UserError
from ..files import atomic_path, remove_leftovers
from ..zoo import local_checkpoint

__all__ = [
    "STOPPED",
    "SafeCheckpointHook",
    "find_checkpoints",
    "newest_readable",
    "note_latest",
    "on_main",
    "read_through_our_loader",
    "training_state",
]

T = TypeVar("T")
STOPPED = "stopped.pth"  # saved between two numbered checkpoints; the next of these replaces it
_NOTE, _VALIDATED = "last_checkpoint", "last_validation"
_HUB = ("message_hub.log_scalars", "message_hub.runtime_info", "message_hub.resumed_keys")


class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, with its options, in an order that leaves a complete checkpoint at any moment.

    At least two are kept if old ones are deleted at all (`max_keep_ckpts=1` counts as 2), since the newest may be
    unreadable. Only files in this run's folder are deleted, whatever a resumed checkpoint says. A validation starts
    only after a save, and an interrupted one is repeated when the run is resumed.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.max_keep_ckpts == 1:
            self.max_keep_ckpts = 2

    def before_train(self, runner: Runner) -> None:
        known = runner.message_hub.runtime_info.get("keep_ckpt_ids")
        if known is not None:
            numbers = [step for step in known if type(step) is int] if isinstance(known, list) else []
            runner.message_hub.update_info("keep_ckpt_ids", numbers)
        super().before_train(runner)
        if is_main_process():
            for folder in {str(self.out_dir), runner.work_dir}:
                remove_leftovers(folder)
        due = getattr(runner.train_loop, "validation_is_due", None)
        if runner.iter and runner.val_loop is not None and due is not None and due():
            note = Path(runner.work_dir, _VALIDATED)
            done = on_main(lambda: note.is_file() and note.read_text() == str(runner.iter))
            # The checkpoint is older than its validation, whose score early stopping counts.
            if not done or any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks):
                runner.val_loop.run()

    def before_val(self, runner: Runner) -> None:
        if runner.is_training:
            runner.save_place()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        super().after_val_epoch(runner, metrics)
        if runner.is_training and is_main_process():
            Path(runner.work_dir, _VALIDATED).write_text(str(runner.iter))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            steps = [*self.keep_ckpt_ids, step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)  # and forgets the first, if it is full
            # With the outdated ones: if this process dies before it deletes them, the next one does.
            runner.message_hub.update_info("keep_ckpt_ids", steps)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if self.save_optimizer:
            runner.saved_iter = meta["iter"]
        if is_main_process():
            note_latest(runner.work_dir, self.last_ckpt)
            stopped = Path(runner.work_dir, STOPPED)
            if stopped.is_file():
                stopped.unlink()
            for old in outdated:
                self._remove(self.filename_tmpl.format(old))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # mmengine deletes the best one so far before it writes the better one, unless it knows none.
        before = self._best_paths
        self._best_paths = dict.fromkeys(before)
        super()._save_best_checkpoint(runner, metrics)
        after = self._best_paths
        self._best_paths = {key: after[key] or path for key, path in before.items()}
        outdated = {Path(path).name for key, path in before.items() if path and after[key]}
        for name in outdated - {Path(path).name for path in after.values() if path}:
            if name.startswith("best_") and is_main_process():
                self._remove(name)

    @property
    def _best_paths(self) -> dict[str, str | None]:
        """The best checkpoint of each metric. mmengine stores that of a single one elsewhere."""
        return {"": self.best_ckpt_path} if len(self.key_indicators) == 1 else dict(self.best_ckpt_path_dict)

    @_best_paths.setter
    def _best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths[""]
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


# Reading


def on_main(work: Callable[[], T]) -> T:
    """Run `work` in the first process; in every process, return its (picklable) result or raise its `UserError`."""
    message: list = [None, None]  # result, error
    if is_main_process():
        try:
            message[0] = work()
        except UserError as error:
            message[1] = error
    broadcast_object_list(message)
    if message[1] is not None:
        raise message[1]
    return message[0]


@master_only
def note_latest(work_dir: str, checkpoint: str | Path) -> None:
    """Write the name of a run's latest checkpoint where mmengine looks for it."""
    with atomic_path(Path(work_dir, _NOTE)) as temporary:
        temporary.write_text(str(checkpoint))


def find_checkpoints(config: Config) -> list[Path]:
    """The checkpoints that the run of a configuration can resume from, newest first.

    These are the one that `last_checkpoint` names, those written after that file, and those with smaller numbers.
    Older files with larger numbers belong to an earlier run in the same folder.
    """
    options, work_dir = config.get("default_hooks", {}).get("checkpoint") or {}, config.work_dir
    template = options.get("filename_tmpl") or ("epoch_{}.pth" if options.get("by_epoch", True) else "iter_{}.pth")
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
    folder = Path(options["out_dir"], Path(work_dir).name) if options.get("out_dir") else Path(work_dir)
    found = {int(match[1]): path for path in folder.glob("*") if (match := pattern.fullmatch(path.name))}
    note, stopped = Path(work_dir, _NOTE), Path(work_dir, STOPPED)
    name = Path(note.read_text().strip()).name if note.is_file() else STOPPED
    written = note.stat().st_mtime_ns if note.is_file() else 0
    if noted := pattern.fullmatch(name):
        found = {n: path for n, path in found.items() if n <= int(noted[1]) or path.stat().st_mtime_ns > written}
    is_newest = stopped.is_file() and (name == STOPPED or stopped.stat().st_mtime_ns > written)
    return [stopped] * is_newest + [path for _, path in sorted(found.items(), reverse=True)]


def training_state(content: object, path: str | Path) -> dict:
    """The part of a checkpoint that mmengine resumes from, without code. Raises `CheckpointError` if one is missing."""

    def entry(name: str) -> object:
        value = content
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    missing = [name for name in ("state_dict", *_HUB) if not isinstance(entry(name), dict)]
    missing += [name for name in ("meta.epoch", "meta.iter") if type(entry(name)) is not int]
    # Batches of the epoch: done, and in all.
    place = content["meta"].get("place", [0, 1]) if entry("meta.epoch") is not None else [0, 1]
    if not (isinstance(place, list) and [type(n) for n in place] == [int, int] and 0 <= place[0] <= place[1] != 0):
        missing.append("meta.place")
    if missing:
        raise CheckpointError(
            f"{path} cannot be resumed from: it lacks {', '.join(missing)}; resume from a checkpoint that train.py "
            "wrote, or start from its weights with --cfg-options load_from=FILE"
        )
    return _without_code(content)


def _without_code(content: object) -> object:
    """A checkpoint without what mmengine's runner executes: older versions store a configuration as Python text."""
    if not isinstance(content, dict) or not isinstance(content.get("meta"), dict):
        return content
    return {**content, "meta": {key: value for key, value in content["meta"].items() if key != "config"}}


def newest_readable(paths: list[Path], log: Callable[[str], None]) -> Path | None:
    """The first checkpoint that can be resumed from; None without `paths`. Raises `CheckpointError` if none is."""
    for path in paths:
        try:
            training_state(load_file(path), path)
            return path
        except CheckpointError as error:
            log(f"skipping an unreadable checkpoint: {error}")
    if paths:
        raise CheckpointError(
            f"none of the {len(paths)} checkpoints in {paths[0].parent} can be read; move them away to start again, or "
            "name another one with --resume FILE"
        )
    return None


def _load_from_internimage(filename: str, map_location: object = None) -> object:
    """Read and check a file for mmengine, on the CPU; mmengine copies the weights to their device."""
    return _without_code(load_file(local_checkpoint(filename)))


def read_through_our_loader() -> None:
    """Make mmengine read local files and downloads through `internimage.checkpoint.load_file`."""
    CheckpointLoader.register_scheme(prefixes=["", "http://", "https://"], loader=_load_from_internimage, force=True)
