"""OpenImages (Kuznetsova et al., 2020): the file of image sizes that mmdet needs besides the annotations.

    python detection/datasets/openimages.py oidv6-train-annotations-bbox.csv train annotations/train-image-metas.pkl

The boxes of OpenImages are relative to the image, so mmdet's `OpenImagesDataset` reads a pickle with every image's
size, in the order of the annotations.
"""

import csv
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.images import upright_size

__all__ = ["image_metas"]


def _meta(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"no image at {path}, which the annotations name; download it or remove its lines")
    width, height = upright_size(path)
    return {"filename": path.name, "ori_shape": (height, width, 3)}


def image_metas(annotations: str | Path, images: str | Path) -> list[dict]:
    """Return `{"filename", "ori_shape": (height, width, 3)}` of each annotated image, in the annotations' order.

    Args:
        annotations: OpenImages' `*-annotations-bbox.csv`, all lines of one image together.
        images: folder with the images, `<ImageID>.jpg`. Only their headers are read.
    """
    annotations = Path(annotations)
    if not annotations.is_file():
        raise UserError(f"no annotations at {annotations}; give the path of OpenImages' *-annotations-bbox.csv")
    with open(annotations, newline="") as file:
        rows = csv.reader(file)
        next(rows, None)  # the header
        names = list(dict.fromkeys(row[0] for row in rows))
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(_meta, (Path(images) / f"{name}.jpg" for name in names)))


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the command line and write one file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", help="OpenImages' *-annotations-bbox.csv")
    parser.add_argument("images", help="folder with the images")
    parser.add_argument("out", type=Path, help="pickle to write")
    args = parser.parse_args(argv)
    metas = image_metas(args.annotations, args.images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(pickle.dumps(metas))
    print(f"{args.out}: sizes of {len(metas)} images")


if __name__ == "__main__":
    main()
