"""The released recipes and state-dict keys of detection and segmentation beside our configurations of the same names.

The recipes are in the vocabulary of mmdet 2 and mmseg 0. `detection` and `segmentation` pair each value of a
recipe with that of our configuration; `differences` lists where a pair differs.
"""

import functools
import gzip
import json
from collections.abc import Iterator

from golden import DATA

__all__ = ["DETECTION", "ROOT", "SEGMENTATION", "Released", "differences", "load"]

ROOT = DATA.parents[1]
MISSING = "(missing)"
OTHERS = ("demo", "nuscenes")  # the second needs mmdet3d: tests/detection/test_nuscenes.py


def load(name: str) -> dict:
    """The content of a gzip-compressed JSON file in `tests/data`."""
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


class Released:
    """What the original project released for a task. `configs` is our folder, names are relative to it."""

    def __init__(self, task: str, recipes: dict, keys: dict) -> None:
        self.task, self.recipes, self.keys = task, recipes, keys
        self.configs = ROOT / task / "configs"
        files = (path for path in self.configs.glob("[!_]*/*.py") if path.parent.name not in OTHERS)
        self.names = sorted(str(path.relative_to(self.configs)) for path in files)

    @functools.cache  # noqa: B019 - there are two of these, for the life of the process
    def config(self, name: str) -> dict:
        """Our configuration as plain lists and dictionaries; do not change it."""
        from mmengine.config import Config

        return json.loads(json.dumps(Config.fromfile(self.configs / name, import_custom_modules=False).to_dict()))

    def shapes(self, name: str) -> dict[str, list[int]]:
        """Keys and shapes of the released checkpoint of a configuration."""
        entry = self.keys[name]
        return self.keys[entry["keys_same_as"]]["keys"] if "keys_same_as" in entry else entry["keys"]


def _without(prefix: str, entries: dict) -> dict:
    return {key.removeprefix(prefix): value for key, value in entries.items()}


def _detection_keys() -> dict:
    prefix = "detection/configs/"
    keys = _without(prefix, load("det_keys.json.gz"))
    for entry in keys.values():
        if "keys_same_as" in entry:
            entry["keys_same_as"] = entry["keys_same_as"].removeprefix(prefix)
    return keys


DETECTION = Released(
    "detection", _without("detection/", _without("flash/", load("det_recipes.json.gz"))), _detection_keys()
)
SEGMENTATION = Released("segmentation", load("seg_recipes.json.gz"), load("seg_keys.json.gz"))


def differences(what: str, ours: object, theirs: object) -> Iterator[str]:
    """A line for each value below `ours` and `theirs` that differs, with the path to it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys(), key=str):
            yield from differences(f"{what}.{key}", ours.get(key, MISSING), theirs.get(key, MISSING))
    elif ours != theirs:
        yield f"{what}: {ours!r}, in the recipe {theirs!r}"
