"""Tiny image folders and configurations for the data tests."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from classification.config import get_config, parse_args

CONFIG = Path(__file__).parents[2] / "classification/configs/internimage_t_1k_224.yaml"


def picture(seed, size=(30, 24)):
    """A PIL RGB image of noise, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_folder(root, classes=("cat", "dog", "eel"), train=8, val=3, evaluation="val"):
    """`train/<class>/*.png` and `val/<class>/*.png`, every image different. Returns `root`."""
    seed = 0
    for split, count in (("train", train), (evaluation, val)):
        for name in classes:
            folder = Path(root, split, name)
            folder.mkdir(parents=True)
            for i in range(count):
                picture(seed := seed + 1).save(folder / f"{i}.png")
    return Path(root)


def configure(root, *opts, dataset="folder", batch=4, workers=0, flags=()):
    """A configuration for `root`. Without mixup, 40 x 40 pixels, images read from disk."""
    fixed = {"DATA.IMG_SIZE": 40, "DATA.NUM_WORKERS": workers, "DATA.IMG_ON_MEMORY": False}
    fixed |= {"AUG.MIXUP": 0, "AUG.CUTMIX": 0}
    opts = [str(part) for pair in fixed.items() for part in pair] + [str(opt) for opt in opts]
    argv = ["--cfg", str(CONFIG), "--data-path", str(root), "--dataset", dataset, "--batch-size", str(batch)]
    return get_config(parse_args([*argv, *flags, "--opts", *opts]))


def fingerprint(batch):
    return hashlib.sha1(b"".join(part.numpy().tobytes() for part in batch)).hexdigest()


def epochs(loaders, *numbers):
    """Fingerprints of all training batches of some epochs, in order."""
    found = []
    for number in numbers:
        loaders.set_epoch(number)
        found.append([fingerprint(batch) for batch in loaders.train])
    return found


def pixels_and_labels(loader):
    """All samples of a loader as a set of (image bytes, label)."""
    return {(image.numpy().tobytes(), int(label)) for batch in loader for image, label in zip(*batch[:2])}


def states():
    """A digest of the three global random generators."""
    import random

    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
