"""The released detection recipes (mmdet 2 vocabulary) and our configurations, in one form for comparing."""

import functools
import gzip
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "detection" / "configs"
DATA = ROOT / "tests" / "data"


def load(name):
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


_RECIPES = load("det_recipes.json.gz")
RECIPES = {key.removeprefix("flash/").removeprefix("detection/"): value for key, value in _RECIPES.items()}
KEYS = {key.removeprefix("detection/configs/"): value for key, value in load("det_keys.json.gz").items()}
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("[!_]*/*.py") if path.parent.name != "demo")


def released_shapes(name):
    entry = KEYS[name]
    same_as = entry.get("keys_same_as", "").removeprefix("detection/configs/")
    return KEYS[same_as]["keys"] if same_as else entry["keys"]


@functools.cache
def config(name):
    """The configuration as plain lists and dictionaries; do not change it."""
    from mmengine.config import Config

    return json.loads(json.dumps(Config.fromfile(CONFIGS / name, import_custom_modules=False).to_dict()))


def dataset(split):
    """The innermost data set of a data-loader configuration, or of an old `data.train`."""
    while "dataset" in split or "datasets" in split:
        split = split["dataset"] if "dataset" in split else split["datasets"][0]
    return split


def _scales(value):
    """Scales as pairs (longer, shorter side), whichever way they are written."""
    value = value if isinstance(value[0], list) else [value]
    return sorted((max(scale), min(scale)) for scale in value)


def steps(pipeline):
    """What a pipeline of either vocabulary does to an image, without normalising, padding and packing."""
    done = []
    for step in pipeline:
        kind = step["type"]
        if kind == "MultiScaleFlipAug":
            assert step["flip"] is False
            done.append(("resize", _scales(step["img_scale"])))
        elif kind in ("Resize", "RandomChoiceResize", "RandomResize"):
            assert step["keep_ratio"]
            values = step.get("img_scale") or step.get("scales") or step["scale"]
            random = "range" if kind == "RandomResize" or step.get("multiscale_mode") == "range" else "choice"
            done.append(("resize", _scales(values)) if random == "choice" else ("resize within", _scales(values)))
        elif kind == "RandomFlip":
            done.append(("flip", step.get("flip_ratio", step.get("prob"))))
        elif kind == "RandomCrop":
            done.append(("crop", step["crop_type"], step["crop_size"], step["allow_negative_crop"]))
        elif kind in ("AutoAugment", "RandomChoice"):
            done.append(("one of", [steps(branch) for branch in step.get("policies") or step["transforms"]]))
        elif kind == "LoadAnnotations":
            done.append(("annotations", step.get("with_bbox", False), step.get("with_mask", False)))
    return done
