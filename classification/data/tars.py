"""Labelled images in tar files: WebDataset's shards of `KEY.jpg` and `KEY.cls`, read by index.

The headers of the tar files are read once; then an image is one read at a known offset. So tar files keep what folders
have: any order, the same batches for any number of workers, exact resume in the middle of an epoch. WebDataset's own
streaming leaves these to the caller (webdataset/webdataset, issues 177 and 271).
"""

import functools
import hashlib
import json
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist

from classification.trainer.distributed import World, run_on_main
from internimage.errors import UserError
from internimage.files import atomic_path, open_regular
from internimage.zoo.release import cache_dir

from .files import EXTENSIONS
from .samples import MAX_BYTES, Samples

__all__ = ["TarSamples", "find_shards", "read_tars"]

_THREADS = 8
_POSITION = threading.Lock()
_MAX_DIGITS = 7  # of a class number; the model gets as many outputs
_COLUMNS = ("names", "labels", "offsets", "sizes", "shards")

Index = dict[str, np.ndarray]  # the columns, a row for each image, and "lengths", the size of each tar file


class TarSamples(Samples):
    """Labelled images in the tar files `paths`; `index` says where."""

    def __init__(self, root: Path, paths: Sequence[Path], index: Index) -> None:
        self.root, self.paths, self.extra, self.lengths = root, paths, (), index["lengths"]
        self.names, self.labels, self.offsets, self.sizes, self.shards = (index[column] for column in _COLUMNS)

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def read(self, index: int) -> bytes:
        shard = self.shards[index]
        file = _opened(self.paths[shard], int(self.lengths[shard]))
        data = _read_at(file, self.size(index), int(self.offsets[index]))
        if len(data) < self.size(index):
            raise OSError("its tar file was cut during the run; copy it again and start again")
        return data


def _read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):  # without a file position, which forked workers would share
        return os.pread(file.fileno(), size, offset)
    with _POSITION:  # Windows, which does not fork
        file.seek(offset)
        return file.read(size)


@functools.lru_cache(maxsize=256)  # a quarter of the files that a process may open by default
def _opened(path: Path, length: int) -> BinaryIO:
    file = open_regular(path)
    if os.fstat(file.fileno()).st_size != length:
        raise OSError("its tar file is not the one that was indexed; copy it again and start again")
    return file


def find_shards(root: Path, split: str, pattern: str) -> list[Path]:
    """The tar files of a split, `train` or `val`.

    `pattern` is `train-{000000..001023}.tar` or a folder, relative to `root`. If it is empty: the folder `<split>/`, or
    files in `root` such as `train-000000.tar` and timm's `imagenet1k-validation-00.tar`.

    Raises:
        UserError: no tar files, or a pattern that cannot be read.
    """
    paths = sorted((root / (pattern or split)).glob("*.tar"))
    if match := re.fullmatch(r"([^{}]*)\{(\d{1,6})\.\.(\d{1,6})\}([^{}]*\.tar)", pattern):
        before, first, last, after = match.groups()
        numbers = range(int(first), int(last) + 1)
        paths = [root / f"{before}{str(number).zfill(len(first))}{after}" for number in numbers]
    elif not paths and not pattern:
        paths = sorted(root.glob(f"*{split}*-*.tar"))
    if not paths:
        raise UserError(
            f"no tar files of {split} in {root / pattern}; expected {split}/*.tar or {split}-000000.tar ..., "
            f"or --opts DATA.{split.upper()}_SHARDS 'NAME-{{000000..001023}}.tar'"
        )
    return paths


def read_tars(root: Path, paths: Sequence[Path], report: Callable[[str], None]) -> TarSamples:
    """The samples of tar files, in their order. The index is kept in the cache folder.

    If torch.distributed is initialized, all processes must call this function; the first reads for all.

    Raises:
        UserError: a tar file that is missing, damaged, or has unusable members.
    """
    world = World()
    if dist.is_available() and dist.is_initialized():
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else world.device
        world = World(dist.get_rank(), dist.get_world_size(), device)
    return TarSamples(root, paths, run_on_main(world, lambda: _cached_index(root, paths, report)))


def _cached_index(root: Path, paths: Sequence[Path], report: Callable[[str], None]) -> Index:
    try:
        stats = [os.stat(path) for path in paths]
    except OSError as error:
        raise UserError(f"cannot read the tar file {error.filename}: {error.strerror}; check --data-path") from None
    names = [os.path.relpath(path, root) for path in paths]
    stamp = json.dumps([names, [(status.st_size, status.st_mtime_ns) for status in stats]])
    digest = hashlib.sha256(os.fsencode("\n".join(map(os.path.abspath, paths)))).hexdigest()
    place = cache_dir() / "tar-index" / f"{digest}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), open_regular(place) as file:
        stored = np.load(file, allow_pickle=False)
        if str(stored["stamp"]) == stamp:
            return {column: stored[column] for column in (*_COLUMNS, "lengths")}
    report(f"{root}: reading the headers of {len(paths)} tar files ({names[0]} ...), once")
    with ThreadPoolExecutor(_THREADS) as pool:
        tables = list(pool.map(_scan, paths, names, range(len(paths))))
    index = {column: np.concatenate(parts) for column, parts in zip(_COLUMNS, zip(*tables))}
    index["lengths"] = np.array([status.st_size for status in stats])
    keys = [name.partition(b".tar/")[2].rpartition(b".")[0] for name in index["names"].tolist()]
    if again := len(keys) - len(set(keys)):
        report(f"{root}: {again} keys of images are in several tar files; remove a tar file if it is a copy")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(place) as temporary, open(temporary, "wb") as file:
            np.savez(file, stamp=stamp, **index)
    except (OSError, UserError):
        report(f"cannot write {place}, so the next start reads the headers again; set INTERNIMAGE_HOME to a folder")
    return index


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar file except folders, with the first bytes of each."""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # half a kilobyte each
                if not member.isdir():
                    file.seek(member.offset_data)
                    yield member, file.read(min(member.size, _MAX_DIGITS + 1))
            # To tarfile a damaged header, or none, is the end. The real end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"neither a header nor the end at byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; expected a complete, uncompressed tar file") from None


def _scan(path: Path, shard: str, number: int) -> tuple[np.ndarray, ...]:
    """The columns of one tar file."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    for member, start in _members(path):
        name = member.name.removeprefix("./")
        folder, slash, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        key, is_class, wrong = f"{folder}{slash}{stem}", extension == "cls", ""
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            wrong = "leads out of the tar file, or its name is not printable"
        elif not stem or not (is_class or f".{extension.lower()}" in EXTENSIONS):  # hidden, .json, .txt ...
            continue
        elif not member.isreg() or member.issparse():
            wrong = "is not an ordinary file but a link, a device or sparse"
        elif key in (labels if is_class else images):
            wrong = f"repeats the key {key}"
        elif member.size > MAX_BYTES:
            wrong = f"has more than {MAX_BYTES >> 20} MiB"
        elif is_class and not (start.strip().isdigit() and len(start) <= _MAX_DIGITS):
            wrong = f"has {start!r}, expected the number of a class, which count from 0"
        if wrong:
            raise UserError(f"{path}: member {name!r} {wrong}; write the tar file again without it")
        if is_class:
            labels[key] = int(start)
        else:
            images[key] = f"{shard}/{name}", member.offset_data, member.size
    if odd := sorted(images.keys() ^ labels.keys()):
        lacks = "class (KEY.cls)" if odd[0] in images else "image (KEY.jpg, .png, .webp ...)"
        raise UserError(f"{path}: {len(odd)} keys lack image or class; {odd[0]} has no {lacks}; add it")
    if not images:
        raise UserError(f"{path} has no images; expected KEY.jpg and KEY.cls for each, or remove the tar file")
    names, offsets, sizes = zip(*images.values())
    shards = np.full(len(names), number, dtype=np.int32)
    classes = [labels[key] for key in images]
    return np.array(list(map(os.fsencode, names))), np.array(classes), np.array(offsets), np.array(sizes), shards
