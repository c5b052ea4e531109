"""The steps of a demo: commands that are printed before they run, from the repository root."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from internimage.errors import UserError

__all__ = ["ROOT", "last_checkpoint", "run"]

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object) -> None:
    """Run a Python script from the repository root; its failure ends the demo with its exit code."""
    words = [str(word) for word in command]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # Without this, the threads of two cores burn time on waiting for each other whenever another process runs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    code = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint in `folder`, relative to the repository root. Raises `UserError` if there is none."""
    note = ROOT / folder / "last_checkpoint"  # mmengine's note of its path
    if not note.is_file():
        raise UserError(f"{note} is missing: the training wrote no checkpoint; remove {folder} and start again")
    return folder / Path(note.read_text().strip()).name
