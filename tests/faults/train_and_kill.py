"""Train a tiny model again and again, killed at some moment of saving a checkpoint and started again.

    python train_and_kill.py TASK FOLDER MOMENTS

The moments are the file operations on checkpoints in a training that nothing disturbs (in FOLDER/whole). MOMENTS is
`all`, or a regular expression: one of each kind of operation that it matches. Prints, as JSON, the moments with the
exit codes and last lines of the killed training (in FOLDER/N) and of the one after it.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from in_children import in_child
from mmengine.fileio import LocalBackend

from internimage.mm import runner

TASK, FOLDER, MOMENTS = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS / TASK)]

if TASK == "toy":
    from toy import toy_config
elif TASK == "detection":
    from tiny_coco import make_config, make_data
else:
    from tiny_scenes import make_config, make_data

from quick_mmengine import make_quick  # noqa: E402 - after the path

make_quick()
OPTIONS = {
    "toy": [],
    "detection": ["train_cfg.max_epochs=3", "train_cfg.val_interval=3"],
    "segmentation": ["train_cfg.max_iters=3", "train_cfg.val_interval=3", "default_hooks.checkpoint.interval=1"],
}[TASK]
OPERATIONS = {"open": 0, "os.rename": 1, "os.remove": 0, "os.truncate": 0, "half written": 0}  # where the path is


def watch(work_dir: Path, at: Callable[[str], None]) -> None:
    """Call `at` before each operation on a checkpoint of a run, and in the middle of writing one."""

    def hook(event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or (event == "open" and not isinstance(arguments[1], str)):
            return
        path = str(arguments[OPERATIONS[event]])
        name = Path(path).name
        if Path(path).resolve().parent != work_dir or not re.search(r"\.pth|last_checkpoint", name):
            return
        if event == "os.remove" and name.endswith(".tmp"):
            return
        if event != "open" or set(arguments[1]) & set("wxa+"):
            at(f"{event} {name}")

    def put(self: LocalBackend, content: bytes, path: str | Path) -> None:
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            sys.audit("half written", str(path))
            file.write(content[len(content) // 2 :])

    LocalBackend.put = put
    sys.addaudithook(hook)


def train(name: str, at: Callable[[str], None], config: Path | None) -> tuple[int, str]:
    work_dir = FOLDER.resolve() / name

    def work() -> None:
        watch(work_dir, at)
        if config is None:
            toy = toy_config(work_dir)
            toy.resume = True
            return runner.CheckedRunner.from_cfg(toy).train()
        options = ["default_hooks.checkpoint.max_keep_ckpts=1", *OPTIONS]
        arguments = [str(config), "--work-dir", str(work_dir), "--resume", "--cfg-options", *options]
        runner.train(getattr(runner, TASK.upper()), arguments)

    return in_child(work)


def kind(moment: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"\.\d+\.tmp", ".tmp", moment))


def choose(moments: list[str]) -> list[int]:
    """The numbers of the moments to kill at."""
    if MOMENTS == "all":
        return list(range(len(moments)))
    middle = sorted(range(len(moments)), key=lambda n: abs(n - len(moments) // 2))
    of_kind = {kind(moments[n]): n for n in reversed(middle)}  # the one nearest to the middle of the run
    return sorted(number for name, number in of_kind.items() if re.match(MOMENTS, name))


def main() -> None:
    if TASK == "toy":
        config = None
    else:
        # Of the tiny detectors it is DINO whose loss depends on nothing random.
        config = make_config(FOLDER, make_data(FOLDER / "data"), *["dino"] * (TASK == "detection"))
    record = FOLDER / "moments.txt"

    def note(moment: str) -> None:
        descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{moment}\n".encode())
        os.close(descriptor)

    code, line = train("whole", note, config)
    assert code == 0, line
    moments = record.read_text().splitlines()
    results = {}
    for number in choose(moments):
        left = [number]

        def kill(moment: str) -> None:
            left[0] -= 1  # noqa: B023
            if left[0] < 0:  # noqa: B023
                os.kill(os.getpid(), signal.SIGKILL)

        first = train(str(number), kill, config)
        second = train(str(number), lambda moment: None, config)
        results[number] = (moments[number], first, second)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
