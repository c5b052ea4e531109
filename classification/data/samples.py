"""Lists of labelled images: from class folders, from list files, from zip archives.

All share one class, `Samples`: compact arrays rather than Python objects, because worker processes share pages of
memory with their parent only as long as nobody touches a reference count in them.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from internimage.errors import UserError

from .files import EXTENSIONS, ImageFiles, class_folders

__all__ = ["Samples", "ZipSamples", "read_folder", "read_list", "read_zip"]


class Samples:
    """Labelled image files below one folder.

    Args:
        root: folder that the names are relative to.
        names: n paths relative to `root`.
        labels: n class indices.
        extra: further inputs of the model, arrays with n rows (iNaturalist's metadata).
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int], extra: Sequence[np.ndarray] = ()):
        self.root = root
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = np.array(labels, dtype=np.int64)
        self.extra = tuple(extra)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Where sample `index` comes from, for messages."""
        return str(self.root / os.fsdecode(self.names[index]))

    def size(self, index: int) -> int:
        """Encoded size in bytes; 0 for a file that is not there."""
        try:
            return os.stat(self.name(index)).st_size
        except OSError:
            return 0

    def read(self, index: int) -> bytes:
        """The encoded image. Raises `OSError` if it cannot be read."""
        with open(self.name(index), "rb") as file:
            return file.read()


class ZipSamples(Samples):
    """Labelled images in a zip archive.

    The archive's directory is parsed once. Reads go through `os.pread`, which has no file position, so workers that
    inherited the file descriptor by fork do not disturb each other (a shared `zipfile.ZipFile` would).
    """

    def __init__(self, archive: Path, names: Sequence[str], labels: Sequence[int]):
        super().__init__(archive, names, labels)
        try:
            with zipfile.ZipFile(archive) as file:
                entries = {entry.filename: entry for entry in file.infolist()}
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read {archive}: {error}; expected a zip archive of images") from None
        missing = next((name for name in names if name not in entries), None)
        if missing is not None:
            raise UserError(f"{archive} has no entry {missing}, which its map file lists; check the map file")
        found = [entries[name] for name in names]
        self.offsets = np.array([entry.header_offset for entry in found], dtype=np.int64)
        self.sizes = np.array([entry.compress_size for entry in found], dtype=np.int64)
        self.methods = np.array([entry.compress_type for entry in found], dtype=np.int16)
        self.unpacked_sizes = np.array([entry.file_size for entry in found], dtype=np.int64)
        self.file = open(archive, "rb")  # noqa: SIM115 (lives as long as this object)

    def size(self, index: int) -> int:
        return int(self.unpacked_sizes[index])

    def read(self, index: int) -> bytes:
        # Local file header: 30 bytes, the last four of which are the lengths of the name and of the extra field.
        offset = int(self.offsets[index])
        header = os.pread(self.file.fileno(), 30, offset)
        if len(header) < 30:
            raise OSError("the archive is truncated")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        data = os.pread(self.file.fileno(), int(self.sizes[index]), offset + 30 + name_length + extra_length)
        if self.methods[index] == zipfile.ZIP_STORED:
            return data
        if self.methods[index] != zipfile.ZIP_DEFLATED:
            raise OSError("compressed by a method other than deflate")
        return zlib.decompress(data, -zlib.MAX_WBITS)


def read_folder(root: Path, class_index: dict[str, int], report: Callable[[str], None] = print) -> Samples:
    """All images below `root/<class>/`, in the order of torchvision's ImageFolder; linked ones once (`files.py`).

    Args:
        root: folder of class folders.
        class_index: label of each class; a class folder that is not in it is an error.
        report: called with one line of text for each kind of duplicate.
    """
    names, labels, repeated, alike, shared = [], [], [], [], []
    classes = class_folders(root)
    if not classes:
        raise UserError(f"{root} has no class folders, expected {root}/<class>/<image>.jpg; check --data-path")
    owners: dict[object, str] = {}
    for name in classes:
        if name not in class_index:
            raise UserError(f"{root} has a class {name} that the training set has not; rename the folder or remove it")
        folder = str(root / name)
        found = ImageFiles(folder)
        if not found.paths:
            what = f"images ({', '.join(extension[1:] for extension in EXTENSIONS)})"
            if found.repeated:
                what = f"images of its own: {found.repeated[0]} links to a folder or image that is there already"
            raise UserError(f"class folder {folder} holds no {what}; fill it or remove it")
        names += [name + path[len(folder) :] for path in found.paths]
        labels += [class_index[name]] * len(found.paths)
        repeated += found.repeated
        alike += found.alike
        shared += [(owners[key], path) for key, path in found.folders.items() if key in owners]
        owners |= found.folders
    if repeated:
        report(f"{root}: links left out, for what they lead to is there already: {len(repeated)}; first: {repeated[0]}")
    for pairs, what, remedy in (
        (shared, "folders that links make part of two classes", "remove a link"),
        (alike, "images whose names differ in case or extension alone", "remove one if they are copies"),
    ):
        if pairs:
            report(f"{root}: {what}: {len(pairs)}; first: {' and '.join(pairs[0])}; {remedy}")
    return Samples(root, names, labels)


def _parse_list(path: Path) -> tuple[list[str], list[int]]:
    """Paths and labels of a list file: lines `path label` (blank or tab between), or JSON `[[path, label], ...]`."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.startswith("[") else [line.rsplit(maxsplit=1) for line in text.splitlines()]
        pairs = [(str(row[0]), int(row[1])) for row in rows if row]
    except (OSError, UnicodeDecodeError, ValueError, IndexError, TypeError, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; expected lines of `path label`") from None
    if not pairs:
        raise UserError(f"{path} lists no images; expected lines of `path label`")
    names, labels = zip(*pairs)
    if min(labels) < 0:
        raise UserError(f"{path} has the label {min(labels)}; labels count from 0")
    return list(names), list(labels)


def read_list(path: Path, roots: Sequence[Path]) -> Samples:
    """Samples of a list file; names are relative to the first of `roots` that has the first image."""
    names, labels = _parse_list(path)
    for root in roots:
        if (root / names[0]).is_file():
            return Samples(root, names, labels)
    tried = " or ".join(str(root) for root in roots)
    raise UserError(f"{path} lists {names[0]}, which is not in {tried}; check --data-path")


def read_zip(archive: Path, map_file: Path) -> ZipSamples:
    """Samples of `archive` as listed in `map_file`."""
    for path in (archive, map_file):
        if not path.is_file():
            raise UserError(f"no file {path}; --zip expects train.zip, train_map.txt, val.zip, val_map.txt")
    return ZipSamples(archive, *_parse_list(map_file))
