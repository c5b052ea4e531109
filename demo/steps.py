"""What the demos do alike: print and run commands, write data folders once, and the steps of the mm demos."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.options import add_settings

__all__ = ["ROOT", "mm_demo", "photograph_path", "run", "write_once"]

ROOT = Path(__file__).resolve().parents[1]
STAMP = ".complete"  # holds the version of a folder's content


def run(*command: object) -> None:
    """Run a Python script from the repository root; its failure ends the demo with its exit code."""
    words = [str(word) for word in command]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # Without this, the threads of two cores burn time on waiting for each other whenever another process runs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    code = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def write_once(output: Path, version: str, write: Callable[[Path], int]) -> int:
    """Fill the folder `output` by `write`, which takes a folder and returns how many files it wrote, and return that.

    The folder appears only when it is complete. Returns 0 and writes nothing if it already has this version.

    Raises:
        UserError: `output` cannot be written, or was not written by this function.
    """
    stamp = output / STAMP

    def complete() -> bool:
        return stamp.is_file() and stamp.read_text() == version

    if complete():
        return 0
    if output.exists() and not stamp.is_file():
        raise UserError(f"{output} exists but was not made by the demo: move it away or choose another folder")
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        count = write(partial)
        if complete():  # another demo was faster, and already reads it
            return 0
        (partial / STAMP).write_text(version)
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; free space there or choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def photograph_path(name: str) -> Path:
    """Where the installed scikit-image keeps a photograph. Raises `UserError` if it does not."""
    package = importlib.util.find_spec("skimage")
    path = Path(package.submodule_search_locations[0], "data", name) if package else None
    if path is None or not path.is_file():
        raise UserError(f"scikit-image's photograph {name} is missing; run pip install -e '.[mm]'")
    return path


def _last_checkpoint(folder: Path) -> Path:
    note = ROOT / folder / "last_checkpoint"  # mmengine's note of its path
    if not note.is_file():
        raise UserError(f"{note} is missing: the training wrote no checkpoint; remove {folder} and start again")
    return folder / Path(note.read_text().strip()).name


@exit_on_user_error
def mm_demo(task: str, config: str, photographs: dict[str, str], description: str, argv=None) -> None:
    """Compose pictures of garments, train on them, evaluate, and draw what the model finds on photographs.

    Args:
        task: `detection` or `segmentation`.
        config: path of the configuration.
        photographs: file names for the results on scikit-image's photographs of these names.
        description: for `--help`.
        argv: command-line arguments; defaults to those of the process.
    """
    parser = ArgumentParser(prog=f"python -m {task}.demo", description=description)
    parser.add_argument("--output", default="output", metavar="DIR", help=f"results go to DIR/demo_{task}")
    add_settings(parser)
    args = parser.parse_args(argv)

    started = time.perf_counter()
    folder = Path(args.output, f"demo_{task}")
    options = ["--opts", *args.opts] if args.opts else []
    run("-m", "demo.compose", "--output", "data/composites")
    run(f"{task}/train.py", config, "--output", folder, "--resume", *options)
    checkpoint = _last_checkpoint(folder)
    run(f"{task}/test.py", config, checkpoint, "--output", folder / "test", *options)
    for name, picture in photographs.items():
        run(f"{task}/image_demo.py", photograph_path(name), config, checkpoint, "--output", folder / picture)
    minutes = (time.perf_counter() - started) / 60
    print(f"\ndone in {minutes:.1f} minutes; pictures are in {folder} and {folder}/report, all curves in TensorBoard:")
    print(f"$ python -m tensorboard.main --logdir {folder}")
