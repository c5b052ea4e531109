"""Write each forged checkpoint to a folder and read it in every way; print what became of each as JSON."""

import copy
import json
import sys
from pathlib import Path

import detection.models  # noqa: F401 - isort: skip - before mmdet
import timm
import torch
from forged import FORGED, write
from in_children import in_child
from mmengine.runner import CheckpointLoader

from internimage.checkpoint import load_file


def touch(content: dict) -> None:
    """Copy and look at what was loaded, as a training does."""
    print(repr(copy.deepcopy(content)["forged"]))


READERS = {
    "load_file": load_file,
    "torch.load": lambda path: torch.load(path, weights_only=True),
    "mmengine": lambda path: CheckpointLoader.load_checkpoint(str(path)),
    "timm": lambda path: timm.models.load_state_dict(path),
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = {}
    for name in FORGED:
        path = write(name, folder / f"{name}.pth", {"state_dict": {"w": torch.ones(1)}})
        for reader, read in READERS.items():
            results[f"{name}, {reader}"] = in_child(lambda: touch(read(path)))  # noqa: B023
    print(json.dumps(results))
