"""Find the training and evaluation images of a data set (layouts: docs/classification_data.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.data import ImageNetInfo
from yacs.config import CfgNode

from classification.configs.defaults import SETTINGS
from internimage.errors import UserError
from internimage.imagenet import in22k_to_1k

from .files import class_folders
from .inaturalist import read_inat18
from .places import PLACES, read_places
from .samples import RemoteSamples, Samples, parse_list, read_folder, read_list, read_zip
from .tars import find_shards, read_tars

__all__ = ["Splits", "open_splits"]

# Published class counts: the number of classes of list files, and the expected number of class folders.
_CLASSES = {"imagenet": 1000, "imagenet22K": 21841}
_FOLDERS = {"train": ("train", "fall11_whole"), "val": ("val", "test")}
_LISTS = {
    "train": ("meta_data/train.txt", "meta/train.txt", "meta_data/22k_label.txt", "ILSVRC2011fall_whole_map_train.txt"),
    "val": ("meta_data/val.txt", "meta/val.txt", "ILSVRC2011fall_whole_map_val.txt"),
}

Report = Callable[[str], None]  # called with one line of text


@dataclass
class Splits:
    """Training images (None for evaluation only), evaluation images and class names."""

    train: Samples | None
    val: Samples
    num_classes: int
    class_names: list[str]
    eval_columns: torch.Tensor | None = None


def open_splits(config: CfgNode, report: Report) -> Splits:
    """Find and read the two splits of `DATA.DATASET` in `DATA.DATA_PATH`.

    Args:
        config: the configuration.
        report: called with one line of text if the number of classes is not the expected one.

    Raises:
        UserError: for a missing folder or file, an empty class folder, a bad annotation.
    """
    root, train = Path(config.DATA.DATA_PATH), not config.EVAL_MODE
    if not root.is_dir():
        raise UserError(f"no data folder {root}; pass --data-path DIR, a folder with train/ and val/")
    if config.EVAL_22K_TO_1K:
        return _evaluate_22k_on_1k(config, root, train, report)
    if config.DATA.DATASET == "inat18":
        val, class_index, names = read_inat18(root, "val", None)
        return Splits(read_inat18(root, "train", class_index)[0] if train else None, val, len(class_index), names)
    if config.DATA.DATASET in PLACES:
        val, names = read_places(root, config.DATA.DATASET, "val")
        return Splits(read_places(root, config.DATA.DATASET, "train")[0] if train else None, val, len(names), names)
    splits = _open_both(config, root, train, report)
    expected = _CLASSES.get(config.DATA.DATASET)
    if expected is None and config.MODEL.NUM_CLASSES not in (splits.num_classes, SETTINGS["MODEL.NUM_CLASSES"].default):
        expected = config.MODEL.NUM_CLASSES
    if expected not in (None, splits.num_classes):
        report(f"{root} has {splits.num_classes} classes instead of {expected}: the model gets as many outputs")
    unseen = sorted(set(range(splits.num_classes)) - set(splits.val.labels.tolist()))
    if unseen and config.DATA.DATASET != "imagenet22K":
        names = ", ".join(splits.class_names[label] for label in unseen[:3])
        report(f"{len(unseen)} classes have no validation images ({names}{', ...' if len(unseen) > 3 else ''})")
    return splits


def _open_both(config: CfgNode, root: Path, train: bool, report: Report) -> Splits:
    """Both splits of a data set with one label space."""
    if config.DATA.DATASET == "folder" and not config.DATA.ZIP_MODE and (folder := _unsplit(root)):
        return _split(folder, train, report)
    class_names = _class_names(config, root)
    train_samples = _open_split(config, root, "train", class_names, report) if train else None
    val_samples = _open_split(config, root, "val", class_names, report)
    if class_names is None:  # only list or tar files, which have class numbers
        both = [samples for samples in (train_samples, val_samples) if samples]
        highest = max(int(samples.labels.max()) for samples in both)
        count = _CLASSES.get(config.DATA.DATASET, highest + 1)
        if highest >= count:
            raise UserError(f"a list in {root} has the label {highest}, {config.DATA.DATASET} has {count} classes")
        class_names = _names_from_paths(both[0], count)
    return Splits(train_samples, val_samples, len(class_names), class_names)


def _unsplit(root: Path) -> Path | None:
    """The folder of class folders, `train/` or the root, of a data set without evaluation images; else None."""
    folder = root / "train" if (root / "train").is_dir() else root
    others = any(name.lower().startswith(("train", "val", "test")) for name in {*class_folders(root)} - {"train"})
    lists = any((root / name).is_file() for names in _LISTS.values() for name in names)
    return None if others or lists or len(class_folders(folder)) < 2 else folder


def _split(folder: Path, train: bool, report: Report) -> Splits:
    """Split a fifth of each class off, at least one image of two: the same at every start and in every process."""
    names = class_folders(folder)
    samples = read_folder(folder, {name: i for i, name in enumerate(names)}, report)
    order = np.random.default_rng(0).permutation(len(samples))
    order = order[np.argsort(samples.labels[order], kind="stable")]
    classes = np.split(order, np.cumsum(np.bincount(samples.labels))[:-1])
    val = np.sort(np.concatenate([mine[: max(len(mine) > 1, round(len(mine) / 5))] for mine in classes]))
    if not len(val):
        raise UserError(f"{folder} has one image in each class, too few to split some off for evaluation; add images")
    what = f"{len(val)} of its {len(samples)}, a fifth of each class, are split off, the same ones at every start"
    report(f"{folder} has no evaluation images beside it: {what}")
    both = [Samples(folder, samples.names[half], samples.labels[half]) for half in (np.setdiff1d(order, val), val)]
    return Splits(both[0] if train else None, both[1], len(names), names)


def _first(root: Path, candidates: tuple[str, ...], exists: Callable[[Path], bool]) -> Path | None:
    return next((root / name for name in candidates if exists(root / name)), None)


def _list_file(config: CfgNode, root: Path, split: str) -> Path | None:
    names = tuple(name + suffix for name in _LISTS[split] for suffix in ("", ".zip"))
    return _first(root, names, Path.is_file)


def _class_names(config: CfgNode, root: Path) -> list[str] | None:
    """Names of the class folders of the training set, else of the evaluation set; None for numbered classes."""
    if config.DATA.ZIP_MODE or config.DATA.DATASET == "tar":
        return None
    for split in ("train", "val"):
        folder = _first(root, _FOLDERS[split], Path.is_dir)
        names = class_folders(folder) if folder and not _list_file(config, root, split) else None
        if names:
            return names
    return None


def _open_split(config: CfgNode, root: Path, split: str, class_names: list[str] | None, report: Report) -> Samples:
    if config.DATA.DATASET == "tar":
        return read_tars(root, find_shards(root, split, config.DATA[f"{split.upper()}_SHARDS"]), report)
    if config.DATA.ZIP_MODE:
        return read_zip(root / f"{split}.zip", root / f"{split}_map.txt")
    folder = _first(root, _FOLDERS[split], Path.is_dir)
    list_file = _list_file(config, root, split)
    if config.DATA.IMAGES_URL:
        if list_file is None:
            raise UserError(f"DATA.IMAGES_URL needs the lists {root}/meta_data/train.txt and val.txt, of `path label`")
        return RemoteSamples(config.DATA.IMAGES_URL, *parse_list(list_file))
    if list_file:
        return read_list(list_file, [path for path in (folder, root, root / "fall11_whole") if path])
    if folder is None:
        names = " or ".join(f"{name}/" for name in _FOLDERS[split])
        alike = [name for name in class_folders(root) if name.lower().startswith(split)]
        advice = f"rename {root / alike[0]} to {split}" if alike else "or check --data-path"
        raise UserError(f"{root} has no {names} folder; expected {root}/{split}/<class>/<image>.jpg, {advice}")
    return read_folder(folder, {name: i for i, name in enumerate(class_names or class_folders(folder))}, report)


def _names_from_paths(samples: Samples, count: int) -> list[str]:
    """Class names for list and tar files: the folder names of the images if they differ, else the numbers."""
    names = [str(i) for i in range(count)]
    labels, firsts = np.unique(samples.labels, return_index=True)
    parents = [Path(samples.names[i].decode(errors="replace")).parent.name for i in firsts]
    if all(parent and not parent.endswith(".tar") for parent in parents) and len(set(parents)) == len(parents):
        for label, parent in zip(labels, parents):
            names[label] = parent
    return names


def _evaluate_22k_on_1k(config: CfgNode, root: Path, train: bool, report: Report) -> Splits:
    """Splits to evaluate a model with ImageNet-22K outputs on the columns of the ImageNet-1K classes."""
    columns, outputs = in22k_to_1k(), _CLASSES["imagenet22K"]
    train_samples = None
    if train:
        if config.DATA.DATASET != "imagenet22K":
            raise UserError(
                f"EVAL_22K_TO_1K evaluates models of 22K classes, but DATA.DATASET is {config.DATA.DATASET}; "
                "add --eval, or train with --dataset imagenet22K"
            )
        names = _class_names(config, root)
        train_samples = _open_split(config, root, "train", names, report)
        found = len(class_folders(train_samples.root)) if names else int(train_samples.labels.max()) + 1
        if found > outputs or (names and found != outputs):
            raise UserError(f"{root} has {found} training classes, EVAL_22K_TO_1K needs ImageNet-22K's {outputs}")
    synsets = ImageNetInfo("imagenet1k").label_names()
    if config.DATA.ZIP_MODE or config.DATA.DATASET == "tar" or _list_file(config, root, "val"):
        val = _open_split(config, root, "val", None, report)
        if int(val.labels.max()) >= len(synsets):
            raise UserError(f"{root} has the evaluation label {int(val.labels.max())}, ImageNet-1K ends at 999")
    else:
        folder = _first(root, _FOLDERS["val"], Path.is_dir)
        names = class_folders(folder) if folder else []
        if not set(names) <= set(synsets) and len(names) != len(synsets):
            raise UserError(
                f"{folder} has {len(names)} class folders that are not named as ImageNet-1K's (n01440764 ...); "
                "EVAL_22K_TO_1K needs the synset names, or all 1000 classes in their order"
            )
        val = _open_split(config, root, "val", synsets if set(names) <= set(synsets) else names, report)
    return Splits(train_samples, val, outputs, synsets, columns)
