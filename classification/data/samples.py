"""Labelled images from class folders, list files and zip archives (tar files: `tars.py`).

`Samples` stores arrays instead of Python objects: reference counts would copy the memory that forked workers share.
"""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np

from internimage.errors import UserError
from internimage.files import open_regular

from .files import EXTENSIONS, ImageFiles, class_folders

__all__ = ["MAX_BYTES", "RemoteSamples", "Samples", "ZipSamples", "parse_list", "read_folder", "read_list", "read_zip"]

MAX_BYTES = 1 << 28  # of an encoded image; a member of a small zip archive may be a thousand times larger than it
_ENTRY = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")


class Samples:
    """Labelled image files below one folder.

    Args:
        root: folder that the names are relative to.
        names: n paths relative to `root`.
        labels: n class indices.
        extra: additional inputs of the model, arrays with n rows (iNaturalist's metadata).
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int], extra: Sequence[np.ndarray] = ()):
        self.root = root
        self.names = np.array([os.fsencode(name) for name in names])
        self.labels = np.array(labels, dtype=np.int64)
        self.extra = tuple(extra)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of sample `index`, for messages."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def size(self, index: int) -> int:
        """Encoded size in bytes; 0 for a missing file."""
        try:
            return os.stat(self.name(index)).st_size
        except OSError:
            return 0

    def read(self, index: int) -> bytes:
        """The encoded image. Raises `OSError`, without its name, if it cannot be read or is larger than 256 MiB."""
        with open_regular(self.name(index)) as file:
            size = os.fstat(file.fileno()).st_size  # read(MAX_BYTES + 1) would allocate as much
            if size > MAX_BYTES:
                raise OSError(f"it has more than {MAX_BYTES >> 20} MiB")
            return file.read(size)


class RemoteSamples(Samples):
    """Labelled images below a URL that fsspec reads: `s3://bucket/folder` (Ceph and petrel serve it too), `gs://...`."""

    def __init__(self, root: str, names: Sequence[str], labels: Sequence[int]):
        super().__init__(root, names, labels)
        self._store()  # an error now, not in a worker

    def _store(self) -> fsspec.AbstractFileSystem:
        try:
            return fsspec.core.url_to_fs(self.root)[0]  # fsspec keeps one for each process
        except (ImportError, ValueError) as error:
            raise UserError(f"cannot open DATA.IMAGES_URL {self.root}: {error}") from None

    def size(self, index: int) -> int:
        try:
            return self._store().size(self.name(index)) or 0
        except OSError:
            return 0

    def read(self, index: int) -> bytes:
        data = self._store().cat_file(self.name(index), start=0, end=MAX_BYTES + 1)  # one request, no more memory
        if len(data) > MAX_BYTES:
            raise OSError(f"it has more than {MAX_BYTES >> 20} MiB")
        return data


class ZipSamples(Samples):
    """Labelled images in a zip archive. Its directory is read once; each process opens the archive itself."""

    def __init__(self, archive: Path, names: Sequence[str], labels: Sequence[int]):
        super().__init__(archive, names, labels)
        try:
            self.archive = zipfile.ZipFile(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read {archive}: {error}; expected a zip archive of images") from None
        entries = self.archive.NameToInfo
        for name in names:
            if name not in entries:
                raise UserError(f"{archive} has no entry {name}, which its map file lists; check the map file")
            if entries[name].file_size > MAX_BYTES:
                raise UserError(f"{name} in {archive} has more than {MAX_BYTES >> 20} MiB unpacked; take it out")
        self.entries = np.array([[getattr(entries[name], field) for field in _ENTRY] for name in names])
        # Python objects of half a kilobyte per image, copied in every worker.
        self.archive.filelist, self.archive.NameToInfo = [], {}
        self.process = os.getpid()

    def size(self, index: int) -> int:
        return int(self.entries[index, _ENTRY.index("file_size")])

    def read(self, index: int) -> bytes:
        if self.process != os.getpid():  # after a fork, both processes share one file position
            self.archive.fp, self.process = open_regular(self.root), os.getpid()
        entry = zipfile.ZipInfo(os.fsdecode(self.names[index]))
        for field, value in zip(_ENTRY, self.entries[index].tolist()):
            setattr(entry, field, value)
        return self.archive.read(entry)


def read_folder(root: Path, class_index: dict[str, int], report: Callable[[str], None] = print) -> Samples:
    """All images below `root/<class>/`, in the order of torchvision's ImageFolder; linked ones once (`files.py`).

    Args:
        root: folder of class folders.
        class_index: label of each class.
        report: called with one line of text for each kind of duplicate.

    Raises:
        UserError: an empty folder, or a class that is not in `class_index`.
    """
    names, labels, repeated, alike, shared = [], [], [], [], []
    classes = class_folders(root)
    if not classes:
        raise UserError(f"{root} has no class folders, expected {root}/<class>/<image>.jpg; check --data-path")
    owners: dict[object, str] = {}
    for name in classes:
        if name not in class_index:
            raise UserError(f"{root} has a class {name} that is not in the training set; rename or remove the folder")
        folder = str(root / name)
        found = ImageFiles(folder)
        if not found.paths:
            what = f"images ({', '.join(extension[1:] for extension in EXTENSIONS)})"
            if found.repeated:
                what = f"images of its own: {found.repeated[0]} links to a folder or image that was already found"
            raise UserError(f"class folder {folder} has no {what}; add images or remove it")
        names += [name + path[len(folder) :] for path in found.paths]
        labels += [class_index[name]] * len(found.paths)
        repeated += found.repeated
        alike += found.alike
        shared += [(owners[key], path) for key, path in found.folders.items() if key in owners]
        owners |= found.folders
    if repeated:
        report(f"{root}: links skipped because their targets were already found: {len(repeated)}; first: {repeated[0]}")
    for pairs, what, remedy in (
        (shared, "folders that links put into two classes", "remove a link"),
        (alike, "images whose names differ only in case or extension", "remove one if they are copies"),
    ):
        if pairs:
            report(f"{root}: {what}: {len(pairs)}; first: {' and '.join(pairs[0])}; {remedy}")
    return Samples(root, names, labels)


def parse_list(path: Path) -> tuple[list[str], list[int]]:
    """Paths and labels of a list file: lines `path label` (blank or tab between), or JSON `[[path, label], ...]`.

    The file may be in a zip archive of its name. The labels of `22k_label.txt` are numbered by `22k_class_to_idx.json`.
    """
    numbers = path.with_name("22k_class_to_idx.json")
    try:
        source = zipfile.Path(path, path.stem) if path.suffix == ".zip" else path
        text = source.read_text(encoding="utf-8")
        label = json.loads(numbers.read_text()).__getitem__ if path.name.startswith("22k_label") else int
        rows = json.loads(text) if text.startswith("[") else [line.rsplit(maxsplit=1) for line in text.splitlines()]
        pairs = [(str(row[0]), int(label(row[1]))) for row in rows if row]
    except (OSError, ValueError, IndexError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; expected lines of `path label`") from None
    if not pairs:
        raise UserError(f"{path} lists no images; expected lines of `path label`")
    names, labels = zip(*pairs)
    if min(labels) < 0:
        raise UserError(f"{path} has the label {min(labels)}; labels count from 0")
    return list(names), list(labels)


def read_list(path: Path, roots: Sequence[Path] = (), *, rooted: bool = False) -> Samples:
    """Samples of a list file; names are relative to the first of `roots` that contains the first image.

    `rooted`: a slash at the start of a name stands for the root. Without roots nothing is looked for.
    """
    names, labels = parse_list(path)
    if not roots:
        return Samples(path.parent, names, labels)
    if rooted:
        names = [name.lstrip("/") for name in names]
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
    return ZipSamples(archive, *parse_list(map_file))
