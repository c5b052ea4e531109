"""Unpack the embedded Fashion-MNIST subset to an ImageFolder: {train,val}/<class name>/<number>.png.

    python demo/unpack.py [--output data/fashion_mnist]

A complete folder is left alone, and a new one appears only when all of it is written.
"""

import hashlib
import itertools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image

from demo.steps import ROOT, write_once
from internimage.errors import ArgumentParser, UserError, exit_on_user_error

__all__ = ["unpack"]

SHEETS = Path(__file__).parent / "fashion_mnist"
TILE = 28


def unpack(output: Path, sheets: Path = SHEETS) -> int:
    """Cut the sheets under `sheets` into single PNGs under `output`; return how many were written (0: was there).

    Raises `UserError` if a sheet is damaged, or if `output` cannot be written or was not written by this function.
    """
    sums = (sheets / "SHA256SUMS").read_bytes()

    def write(folder: Path) -> int:
        count = 0
        for line in sums.decode().splitlines():
            digest, name = line.split()
            count += _cut_sheet(sheets / name, digest, (folder / name).with_suffix(""))
        return count

    return write_once(output, hashlib.sha256(sums).hexdigest(), write)


def _cut_sheet(path: Path, digest: str, folder: Path) -> int:
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise UserError(f"{path} is missing or damaged: restore it with `git checkout -- {path}`")
    folder.mkdir(parents=True)
    with Image.open(path) as sheet:
        corners = list(itertools.product(range(0, sheet.height, TILE), range(0, sheet.width, TILE)))
        for number, (top, left) in enumerate(corners):
            tile = sheet.crop((left, top, left + TILE, top + TILE))
            tile.save(folder / f"{number:04d}.png", compress_level=1)
    return len(corners)


@exit_on_user_error
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "fashion_mnist")
    output = parser.parse_args().output
    count = unpack(output)
    print(f"{output}: {count} images written" if count else f"{output}: already complete")


if __name__ == "__main__":
    main()
