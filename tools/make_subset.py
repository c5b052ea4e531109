"""Make the embedded Fashion-MNIST subset: one contact sheet per split and class, from the original IDX files.

Source: Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), https://github.com/zalandoresearch/fashion-mnist, MIT licence,
Copyright (c) 2017 Zalando SE. The four `*-ubyte.gz` files are read from a folder, checked against their SHA-256, and
the first N images of each class are laid out row by row on a grey-level PNG, which is lossless:

    python tools/make_subset.py --source FOLDER_WITH_IDX_FILES
"""

import argparse
import gzip
import hashlib
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from demo.unpack import SHEETS, TILE
from internimage.errors import UserError, exit_on_user_error

__all__ = ["read_idx", "make_sheet", "CLASSES", "COLUMNS"]

# In the order of the labels 0 to 9; "T-shirt/top" and "Ankle boot" in a form that can name a folder.
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot")
COLUMNS = 40

# (images, labels, images kept per class) of each split. Validation images come from the original test split only.
SPLITS = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 1200),
    "val": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 200),
}
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes into an array of the shape that its header states.

    Raises `UserError` if the file is missing or is not the published one.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: --source must be the folder of the four original Fashion-MNIST files")
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256[path.name]:
        raise UserError(f"{path} is not the published file (its SHA-256 differs): fetch it again")
    data = gzip.decompress(packed)
    ndim = data[3]  # header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then the dimensions
    shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def make_sheet(images: np.ndarray) -> np.ndarray:
    """Lay (N, 28, 28) images out row by row, `COLUMNS` to a row: (N / COLUMNS * 28, COLUMNS * 28)."""
    rows = len(images) // COLUMNS
    return images.reshape(rows, COLUMNS, TILE, TILE).swapaxes(1, 2).reshape(rows * TILE, COLUMNS * TILE)


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the four original *-ubyte.gz files")
    parser.add_argument("--output", type=Path, default=SHEETS)
    args = parser.parse_args()

    sums = []
    for split, (images_name, labels_name, per_class) in SPLITS.items():
        images, labels = read_idx(args.source / images_name), read_idx(args.source / labels_name)
        (args.output / split).mkdir(parents=True, exist_ok=True)
        for label, name in enumerate(CLASSES):
            path = args.output / split / f"{name}.png"
            Image.fromarray(make_sheet(images[labels == label][:per_class])).save(path, optimize=True)
            sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {split}/{name}.png\n")
    (args.output / "SHA256SUMS").write_text("".join(sums))
    size = sum(path.stat().st_size for path in args.output.rglob("*.png"))
    print(f"wrote {len(sums)} sheets, {size / 1e6:.2f} MB, to {args.output}")


if __name__ == "__main__":
    main()
