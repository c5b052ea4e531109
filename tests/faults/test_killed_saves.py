"""Detection and segmentation never lose a run: killed while saving, out of space, with damaged or forged files."""

import os
import re
from pathlib import Path

import pytest
import torch
from in_children import results_of
from mmengine.fileio import LocalBackend
from mmengine.runner import CheckpointLoader, Runner
from toy import toy_config

from internimage.checkpoint import load_file, read_state_dict, save_atomic
from internimage.errors import CheckpointError, UserError
from internimage.mm.checkpoints import find_checkpoints
from internimage.mm.runner import CheckedRunner
from quick_mmengine import make_quick

make_quick()


def train(
    work_dir: Path,
    kind: type[Runner] = CheckedRunner,
    *,
    resume: bool = False,
    load_from: Path | None = None,
    **checkpoint: object,
) -> None:
    config = toy_config(work_dir, **checkpoint)
    config.update(resume=resume, load_from=load_from and str(load_from), log_level="WARNING")
    # Loggers and message hubs of a name outlive a run; those of a new process are new.
    config.experiment_name = f"{work_dir}, {os.urandom(4).hex()}"
    kind.from_cfg(config).train()


def names(folder: Path, pattern: str = "*.pth") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def same_weights(first: Path, second: Path) -> bool:
    first, second = read_state_dict(first), read_state_dict(second)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of five steps."""
    train(tmp_path / "run")
    return tmp_path / "run"


def change(path: Path, edit) -> None:
    content = load_file(path)
    edit(content)
    save_atomic(content, path)


def stop_at(run: Path, step: int) -> None:
    """Make the run as if it had been stopped after a step."""
    for path in run.glob("*.pth"):
        if int(re.findall(r"\d+", path.name)[0]) > step:
            path.unlink()
    (run / "last_checkpoint").write_text(str(run / f"iter_{step}.pth"))


# Killed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "moments", "count", "last"),
    [
        ("toy", ".", 10, "iter_5"),
        # One moment each in the tasks, whose trainings take longer; the code is the same.
        ("detection", r"half written \.?epoch", 1, "epoch_3"),
        ("segmentation", r"os\.rename \.?iter", 1, "iter_3"),
    ],
    ids=["toy", "detection", "segmentation"],
)
def test_killed_in_any_moment_of_a_save_and_started_again_a_run_ends_the_same(task, moments, count, last, tmp_path):
    results = results_of("train_and_kill.py", task, tmp_path, moments)
    assert len(results) == count
    for number, (moment, killed, again) in results.items():
        run = tmp_path / number
        assert killed[0] == 128 + 9 and again[0] == 0, (moment, killed, again)
        assert same_weights(run / f"{last}.pth", tmp_path / f"whole/{last}.pth"), moment
        assert (run / "last_checkpoint").read_text().endswith(f"{last}.pth"), moment
        assert len(names(run, "[ei]*_*.pth")) == 2 and not names(run, ".*"), moment


# Kept and deleted


@pytest.mark.parametrize(("asked", "kept"), [(1, [4, 5]), (2, [4, 5]), (3, [3, 4, 5]), (-1, [1, 2, 3, 4, 5])])
def test_at_least_two_checkpoints_are_kept_and_the_best(asked, kept, tmp_path):
    train(tmp_path, max_keep_ckpts=asked)
    assert names(tmp_path) == ["best_steps_iter_5.pth", *(f"iter_{step}.pth" for step in kept)]


@pytest.mark.parametrize("best", ["steps", ["steps", "count"]], ids=["one metric", "two metrics"])
def test_nothing_is_deleted_before_what_replaces_it_is_there(best, tmp_path, monkeypatch):
    removed = []

    def remove(self, path):
        removed.append(Path(path).name)
        load_file((tmp_path / "last_checkpoint").read_text())
        step = int(re.findall(r"\d+", Path(path).name)[0])
        replaced = Path(path).name.startswith("best")
        newer = Path(path).name.replace(str(step), str(step + 1)) if replaced else f"iter_{step + 2}.pth"
        assert (tmp_path / newer).is_file()
        os.remove(path)

    monkeypatch.setattr(LocalBackend, "remove", remove)
    train(tmp_path, save_best=best)
    metrics = [best] if isinstance(best, str) else best
    assert sorted(removed) == sorted(
        [f"best_{name}_iter_{step}.pth" for name in metrics for step in range(1, 5)]
        + [f"iter_{n}.pth" for n in (1, 2, 3)]
    )


def test_a_worse_result_leaves_the_best_checkpoint(tmp_path):
    train(tmp_path, rule="less")
    assert names(tmp_path, "best*") == ["best_steps_iter_1.pth"]


def test_what_a_killed_run_left_is_removed(run):
    (run / ".iter_9.pth.123.tmp").write_text("half")
    (run / ".last_checkpoint.123.tmp").write_text("")
    stop_at(run, 4)
    train(run, resume=True)
    assert not names(run, ".*") and (run / "iter_5.pth").is_file()


def test_a_full_disk_is_one_line_and_leaves_what_was_there(run, monkeypatch):
    stop_at(run, 4)

    def full(self, content, path):
        Path(path).write_bytes(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalBackend, "put", full)
    with pytest.raises(UserError, match=r"cannot write .*iter_5\.pth: No space left on device; free space"):
        train(run, resume=True)
    monkeypatch.undo()
    assert not names(run, ".*")
    train(run, resume=True)
    assert (run / "iter_5.pth").is_file()


# Found again


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_an_unreadable_checkpoint_is_passed_over_with_a_notice(run, tmp_path):
    stop_at(run, 5)
    damage(run / "iter_5.pth")
    train(run, resume=True)
    log = max(run.glob("*/*.log"), key=lambda path: path.stat().st_mtime).read_text()
    assert re.search(r"skipping an unreadable checkpoint: .*iter_5\.pth: it is damaged", log)
    train(tmp_path / "whole")
    assert same_weights(run / "iter_5.pth", tmp_path / "whole/iter_5.pth")


def test_if_none_can_be_read_the_run_does_not_start_anew(run):
    for path in run.glob("iter_*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* can be read; move them away"):
        train(run, resume=True)


def found(run: Path) -> list[str]:
    return [path.name for path in find_checkpoints(toy_config(run))]


def test_a_note_of_a_file_that_is_gone_does_not_hide_the_others(run):
    (run / "iter_5.pth").unlink()
    assert found(run) == ["iter_4.pth"]


def test_a_checkpoint_newer_than_the_note_is_found_and_one_of_an_earlier_run_is_not(run):
    (run / "iter_9.pth").write_bytes((run / "iter_5.pth").read_bytes())
    assert found(run) == ["iter_9.pth", "iter_5.pth", "iter_4.pth"]
    os.utime(run / "iter_9.pth", (0, 0))
    assert found(run) == ["iter_5.pth", "iter_4.pth"]
    (run / "last_checkpoint").unlink()
    assert found(run) == ["iter_9.pth", "iter_5.pth", "iter_4.pth"]


def test_without_any_checkpoint_a_resumed_run_starts(tmp_path):
    train(tmp_path / "one", resume=True)
    train(tmp_path / "two")
    assert same_weights(tmp_path / "one/iter_5.pth", tmp_path / "two/iter_5.pth")


# Forged


@pytest.mark.parametrize("kind", [CheckedRunner, Runner], ids=["ours", "mmengine's"])
def test_a_configuration_inside_a_checkpoint_is_not_run(kind, run, tmp_path):
    stop_at(run, 4)
    target = tmp_path / "made by a checkpoint"
    code = f"x = str(__import__('pathlib').Path({str(target)!r}).touch())\n"
    change(run / "iter_4.pth", lambda content: content["meta"].update(config=code))
    train(tmp_path / "other", kind, resume=True, load_from=run / "iter_4.pth")
    assert (tmp_path / "other/iter_5.pth").is_file() and not target.exists()


def test_a_checkpoint_cannot_name_files_to_delete(run, tmp_path):
    stop_at(run, 4)
    for name in ("precious", "best_of_all.pth"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "best_folder").mkdir()
    for name in ("precious", "best_of_all.pth", "best_folder"):

        def edit(content):
            info = content["message_hub"]["runtime_info"]
            info.update(best_ckpt=str(tmp_path / name), best_score=-1.0)  # noqa: B023
            info["keep_ckpt_ids"] = ["/../../precious", "../../precious", 1.5, None, 4]

        change(run / "iter_4.pth", edit)
        train(run, resume=True, load_from=run / "iter_4.pth")
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("message_hub"), "lacks message_hub.log_scalars, .*; resume from a checkpoint"),
        (lambda content: content.update(meta={"epoch": 0}), "lacks meta.iter"),
        (lambda content: content.update(message_hub={}), "lacks message_hub.log_scalars, message_hub.runtime_info"),
    ],
    ids=["no hub", "no step", "empty hub"],
)
def test_resuming_from_weights_alone_says_what_is_missing(edit, message, run):
    change(run / "iter_5.pth", edit)
    with pytest.raises(CheckpointError, match=message):
        train(run, resume=True, load_from=run / "iter_5.pth")


def test_mmengines_own_loader_finds_damage_too(run):
    damage(run / "iter_5.pth")
    with pytest.raises(CheckpointError, match=r"iter_5\.pth: it is damaged"):
        CheckpointLoader.load_checkpoint(str(run / "iter_5.pth"), map_location="cpu")
