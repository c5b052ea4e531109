"""Places365-Standard and Places205 (Zhou et al., 2014 and 2017): their own list files and class names."""

from pathlib import Path

from internimage.errors import UserError

from .samples import Samples, read_list

__all__ = ["PLACES", "read_places"]

# Lists of images, and the folders that their paths are relative to: the small images or the large ones.
PLACES = {
    "places365": {
        "train": (
            "places365_train_standard.txt",
            ("data_256_standard", "data_large_standard", "data_256", "data_large"),
        ),
        "val": ("places365_val.txt", ("val_256", "val_large")),
    },
    "places205": {
        split: (f"trainvalsplit_places205/{split}_places205.csv", ("data/vision/torralba/deeplearning/images256",))
        for split in ("train", "val")
    },
}


def _scene(path: str) -> str:
    """`bus_station/indoor` from `/b/bus_station/indoor`."""
    return path.lstrip("/").partition("/")[2]


def read_places(root: Path, dataset: str, split: str) -> tuple[Samples, list[str]]:
    """Samples and class names of one split, `train` or `val`, in the layout of the download.

    Places365 names its classes in `categories_places365.txt`, Places205 in the paths of its images.

    Raises:
        UserError: a missing file or image, or a label without a class.
    """
    name, folders = PLACES[dataset][split]
    samples = read_list(root / name, [root / folder for folder in folders], rooted=True)
    if dataset == "places365":
        named = read_list(root / "categories_places365.txt")
        scenes = dict(zip(named.labels.tolist(), (_scene(path.decode()) for path in named.names)))
    else:
        scenes = dict(
            zip(samples.labels.tolist(), (_scene(path.decode()).rpartition("/")[0] for path in samples.names))
        )
    count = max(scenes) + 1
    if missing := (set(range(count)) | set(samples.labels.tolist())) - scenes.keys():
        raise UserError(f"{root / name} or the list of classes lacks class {min(missing)}; download both again")
    return samples, [scenes[label] for label in range(count)]
