"""Compose pictures of garments on photographs, with boxes, instance masks and label maps.

    python -m demo.compose [--output data/composites] [--train 6000] [--val 300] [--seed 0]

Garments are the Fashion-MNIST images embedded for the classification demo (Zalando SE, MIT licence), coloured, rotated
and enlarged; photographs are those of the scikit-image package. Training and validation share neither. It writes

    annotations/{train,val}.json    COCO format; `bbox`, `area` and `segmentation` (RLE) cover what is visible
    images/{train,val}/00000.png    96 x 96, RGB
    labels/{train,val}/00000.png    label maps: 0 background, k the k-th class of `CLASSES`, counted from 1

A complete folder is left alone, and a new one appears only when all of it is written.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage
from tqdm import tqdm

from demo.steps import ROOT, photograph_path, write_once
from demo.unpack import SHEETS, TILE
from internimage.errors import ArgumentParser, UserError, exit_on_user_error

__all__ = ["CLASSES", "PHOTOGRAPHS", "SIZE", "Instance", "composite", "compose", "cut_out"]

CLASSES = ("T-shirt", "Trouser", "Dress", "Bag", "Ankle-boot")
SIZE = 96
PHOTOGRAPHS = {
    "train": (
        *("camera.png", "coffee.png", "coins.png", "grass.png", "hubble_deep_field.jpg"),
        *("ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg"),
    ),
    "val": ("astronaut.png", "brick.png", "chelsea.png", "gravel.png", "rocket.jpg"),
}


@dataclass
class Instance:
    """A pasted garment: index into `CLASSES`, and the mask `(SIZE, SIZE)`, bool, of its visible part."""

    label: int
    mask: np.ndarray


# Material


def _read_photograph(name: str) -> np.ndarray:
    with Image.open(photograph_path(name)) as image:
        return np.asarray(image.convert("RGB"))


def _read_sheet(split: str, name: str) -> np.ndarray:
    """All garments of one class, `(N, 28, 28)`, uint8."""
    path = SHEETS / split / f"{name}.png"
    if not path.is_file():
        raise UserError(f"{path} is missing: restore it with `git checkout -- {path}`")
    with Image.open(path) as image:
        sheet = np.asarray(image)
    rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
    return sheet.reshape(rows, TILE, columns, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)


def cut_out(garment: np.ndarray) -> np.ndarray:
    """The mask `(28, 28)`, bool, of a garment on black: its largest part, without specks and pinholes."""
    inside = ndimage.binary_closing(np.pad(garment > 10, 2))[2:-2, 2:-2]
    parts, count = ndimage.label(inside, np.ones((3, 3)))
    if count == 0:
        return inside
    inside = parts == 1 + np.argmax(ndimage.sum_labels(inside, parts, range(1, count + 1)))
    holes, count = ndimage.label(~inside)
    # A dark print is part of the garment; the opening under a bag's handle, larger, is not.
    for hole, size in enumerate(ndimage.sum_labels(~inside, holes, range(1, count + 1)), start=1):
        if size <= 8:
            inside |= holes == hole
    return inside


# Pictures


def _background(photographs: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """A square part of a photograph, `(SIZE, SIZE, 3)`, float 0 to 255, mirrored and lit at random."""
    photograph = photographs[generator.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = int(generator.integers(SIZE, min(height, width, 4 * SIZE) + 1))
    top, left = generator.integers(height - side + 1), generator.integers(width - side + 1)
    part = cv2.resize(photograph[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    if generator.random() < 0.5:
        part = part[:, ::-1]
    return np.clip(part * generator.uniform(0.7, 1.2, 3) + generator.uniform(-20, 20), 0, 255)


def _place(garment: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A garment in colour at a random place, size and angle: `(SIZE, SIZE, 3)`, and its opacity `(SIZE, SIZE)`."""
    inside = cut_out(garment)
    # The outermost pixels are half black: inner colours replace them.
    core = ndimage.binary_erosion(inside)
    if core.any():
        rows, columns = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
        garment = garment[rows, columns]
    if generator.random() < 0.5:
        garment, inside = garment[:, ::-1], inside[:, ::-1]
    center = np.array([TILE / 2 - 0.5, TILE / 2 - 0.5])
    affine = cv2.getRotationMatrix2D(tuple(center), generator.uniform(-30, 30), generator.uniform(1.6, 2.8))
    affine[:, 2] += generator.uniform(SIZE / 4, 3 * SIZE / 4, 2) - center
    size, smooth = (SIZE, SIZE), cv2.INTER_CUBIC
    grey = cv2.warpAffine(garment.astype(np.float32), affine, size, flags=smooth, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(inside.astype(np.float32), affine, size, flags=cv2.INTER_LINEAR)
    color = generator.uniform(0.35, 1.0, 3)
    color /= color.max()
    shade = generator.uniform(20, 60) + np.clip(grey, 0, 255) * generator.uniform(0.6, 0.85)
    return shade[..., None] * color, np.clip(2 * alpha - 0.5, 0, 1)


def composite(
    photographs: list[np.ndarray], garments: list[np.ndarray], generator: np.random.Generator
) -> tuple[np.ndarray, list[Instance]]:
    """One picture of one to three garments on a part of a photograph.

    Args:
        photographs: `(H, W, 3)` each, uint8, at least `SIZE` wide and high.
        garments: for each of `CLASSES`, `(N, 28, 28)`, uint8.
        generator: decides everything.

    Returns:
        The picture `(SIZE, SIZE, 3)`, uint8, and its instances. At least 70% of each stays visible.
    """
    picture = _background(photographs, generator)
    placed: list[tuple[Instance, float]] = []  # with the area each needs
    target = int(generator.integers(1, 4))
    for _ in range(4 * target):
        if len(placed) == target:
            break
        label = int(generator.integers(len(garments)))
        colored, alpha = _place(garments[label][generator.integers(len(garments[label]))], generator)
        mask = alpha >= 0.5
        hidden = [(instance.mask & ~mask).sum() < needed for instance, needed in placed]
        if mask.sum() < 120 or any(hidden):
            continue
        for instance, _ in placed:
            instance.mask &= ~mask
        placed.append((Instance(label, mask), 0.7 * mask.sum()))
        picture += alpha[..., None] * (colored - picture)
    return picture.round().clip(0, 255).astype(np.uint8), [instance for instance, _ in placed]


# Files


def _annotation(instance: Instance, image_id: int, number: int) -> dict:
    code = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": instance.label + 1,
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": int(coco_mask.area(code)),
        "iscrowd": 0,
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    for name in ("annotations", f"images/{split}", f"labels/{split}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    photographs = [_read_photograph(name) for name in PHOTOGRAPHS[split]]
    garments = [_read_sheet(split, name) for name in CLASSES]
    images, annotations = [], []
    for index in tqdm(range(count), desc=f"composing {split}", unit="image", mininterval=1):
        # A generator for each picture: the first ones do not depend on the count.
        generator = np.random.default_rng([seed, list(PHOTOGRAPHS).index(split), index])
        picture, instances = composite(photographs, garments, generator)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        for instance in instances:
            labels[instance.mask] = instance.label + 1
            annotations.append(_annotation(instance, index, len(annotations) + 1))
        name = f"{index:05d}.png"
        Image.fromarray(picture).save(folder / "images" / split / name, compress_level=1)
        Image.fromarray(labels).save(folder / "labels" / split / name, compress_level=1)
        images.append({"id": index, "file_name": name, "height": SIZE, "width": SIZE})
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def compose(out: Path, train: int = 6000, val: int = 300, seed: int = 0) -> int:
    """Write the data set and return how many pictures were made (0: they were there).

    Raises `UserError` if material is missing, or if `out` was not written by this function.
    """
    material = [Path(__file__).read_bytes(), (SHEETS / "SHA256SUMS").read_bytes(), f"{train} {val} {seed}".encode()]

    def write(folder: Path) -> int:
        for split, count in (("train", train), ("val", val)):
            _write_split(folder, split, count, seed)
        return train + val

    return write_once(out, hashlib.sha256(b"".join(material)).hexdigest(), write)


@exit_on_user_error
def main() -> None:
    parser = ArgumentParser(prog="python -m demo.compose", description=__doc__.splitlines()[0])
    parser.add_argument("--output", "--out", type=Path, default=ROOT / "data" / "composites", metavar="DIR")
    parser.add_argument("--train", type=int, default=6000, help="pictures for training")
    parser.add_argument("--val", type=int, default=300, help="pictures for validation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count = compose(args.output, args.train, args.val, args.seed)
    print(f"{args.output}: {count} pictures composed" if count else f"{args.output}: already complete")


if __name__ == "__main__":
    main()
