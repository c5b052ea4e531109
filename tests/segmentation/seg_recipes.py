"""The released segmentation recipes (mmseg 0 vocabulary), released keys, and our configurations in comparable form."""

import functools
import gzip
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "segmentation" / "configs"
DATA = ROOT / "tests" / "data"


def load(name):
    return json.loads(gzip.decompress((DATA / name).read_bytes()))


RECIPES = load("seg_recipes.json.gz")
KEYS = load("seg_keys.json.gz")
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("[!_]*/*.py") if path.parent.name != "demo")


def released_shapes(name):
    entry = KEYS[name]
    return KEYS[entry["keys_same_as"]]["keys"] if "keys_same_as" in entry else entry["keys"]


@functools.cache
def config(name):
    """The configuration as plain lists and dictionaries; do not change it."""
    from mmengine.config import Config

    return json.loads(json.dumps(Config.fromfile(CONFIGS / name, import_custom_modules=False).to_dict()))


def parts(dataset):
    """The plain data sets of one of our data-loader configurations."""
    return dataset.get("datasets", [dataset])


def folders(split):
    """`[(images, label maps)]` of an old `data.train`, which may list several folders."""
    pairs = split["img_dir"], split["ann_dir"]
    return list(zip(*pairs)) if isinstance(pairs[0], list) else [pairs]


def steps(pipeline):
    """What a pipeline of either vocabulary does to an image, without normalising, padding and packing."""
    done = []
    for step in pipeline:
        kind = step["type"]
        if kind in ("MultiScaleFlipAug", "TestTimeAug"):
            raise AssertionError("compare these by themselves")
        if kind in ("Resize", "RandomResize"):
            done.append(("resize", step.get("img_scale") or step["scale"], step.get("ratio_range")))
        elif kind == "RandomCrop":
            done.append(("crop", step["crop_size"], step["cat_max_ratio"]))
        elif kind == "RandomFlip":
            done.append(("flip", step["prob"]))
        elif kind in ("MapillaryHack", "MapillaryToCityscapes"):
            done.append(("labels of Cityscapes",))
        elif kind in ("PhotoMetricDistortion", "LoadImageFromFile"):
            done.append((kind,))
        elif kind in ("LoadAnnotations", "LoadLabelMap"):
            done.append(("labels",))
    return done
