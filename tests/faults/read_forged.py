"""Write each forged checkpoint to a folder and read it in every way; print what became of each as JSON.

The readers of one file share a child: forking takes longer than reading. A crash counts for all of them.
"""

import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from forged import FORGED, write
from in_children import in_child
from mmengine.runner import CheckpointLoader

import internimage.mm  # noqa: F401 - lets mmengine's own loader read through ours
from internimage.checkpoint import load_file
from internimage.errors import UserError


def attempt(read: Callable[[Path], dict], path: Path) -> tuple[int, str]:
    """Read a file, copy and look at what was loaded, as a training does; return what `in_child` would."""
    try:
        repr(copy.deepcopy(read(path))["forged"])
    except UserError as error:
        return 2, str(error)
    except Exception as error:
        return 1, str(error).replace("\n", " ")
    return 0, ""


READERS = {
    "load_file": load_file,
    "torch.load": lambda path: torch.load(path, weights_only=True),
    "mmengine": lambda path: CheckpointLoader.load_checkpoint(str(path)),
    "timm": lambda path: timm.models.load_state_dict(path),
}


def print_attempts(path: Path) -> None:
    print(json.dumps({reader: attempt(read, path) for reader, read in READERS.items()}))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = {}
    for name in FORGED:
        path = write(name, folder / f"{name}.pth", {"state_dict": {"w": torch.ones(1)}})
        code, line = in_child(partial(print_attempts, path))
        found = json.loads(line) if code == 0 else dict.fromkeys(READERS, (code, line))
        results |= {f"{name}, {reader}": result for reader, result in found.items()}
    print(json.dumps(results))
