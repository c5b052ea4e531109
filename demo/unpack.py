"""Unpack the embedded Fashion-MNIST subset to an ImageFolder: {train,val}/<class name>/<number>.png.

    python demo/unpack.py [--output data/fashion_mnist]

Quick and safe to repeat: a complete folder is left alone, and a new one appears only when all of it is written.
"""

import argparse
import hashlib
import itertools
import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image

from internimage.errors import UserError, exit_on_user_error

__all__ = ["unpack"]

ROOT = Path(__file__).resolve().parents[1]
SHEETS = Path(__file__).parent / "fashion_mnist"
TILE = 28
STAMP = ".complete"  # holds the checksum of SHA256SUMS, so that a changed subset is unpacked anew


def unpack(output: Path, sheets: Path = SHEETS) -> int:
    """Cut the sheets under `sheets` into single PNGs under `output`; returns how many were written (0: was there).

    Raises `UserError` if a sheet is damaged, or if `output` cannot be written or holds what this function did not make.
    """
    sums = (sheets / "SHA256SUMS").read_bytes()
    version = hashlib.sha256(sums).hexdigest()
    stamp = output / STAMP
    if stamp.is_file() and stamp.read_text() == version:
        return 0
    if output.exists() and not stamp.is_file():
        raise UserError(f"{output} exists but was not made by unpack.py: move it away or choose another --output")

    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    try:
        count = 0
        for line in sums.decode().splitlines():
            digest, name = line.split()
            count += _cut_sheet(sheets / name, digest, (partial / name).with_suffix(""))
        (partial / STAMP).write_text(version)
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}; free space there or choose another --output"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "fashion_mnist")
    output = parser.parse_args().output
    count = unpack(output)
    print(f"{output}: {count} images written" if count else f"{output}: already complete")


if __name__ == "__main__":
    main()
