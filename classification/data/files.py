"""Image files below a folder. Symlinks are followed, but each real folder and each linked image counts once."""

import heapq
import os
from collections.abc import Sequence
from pathlib import Path

from internimage.errors import UserError

__all__ = ["EXTENSIONS", "ImageFiles", "class_folders"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Identity = tuple[int, int] | None  # (st_dev, st_ino), the same for all paths to a file; None if it is not there


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in `root`, sorted; hidden ones are ignored."""
    return sorted(entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith("."))


class ImageFiles:
    """The image files below a folder.

    Real paths win over links to them. A link to a folder that contains the link is a loop, which leads to nothing new.

    Attributes:
        paths: of the images, sorted by folder and then by name, as torchvision's ImageFolder does.
        folders: the path of each real folder by its identity.
        repeated: links that lead to a folder or an image that is there already.
        alike: pairs of images in one folder whose names differ in case or extension alone.

    Raises:
        UserError: a folder that cannot be read; an image that is not a file.
    """

    def __init__(self, root: str | Path) -> None:
        self.paths: list[str] = []
        self.folders: dict[Identity, str] = {}
        self.repeated: list[str] = []
        self.alike: list[tuple[str, str]] = []
        parents = [*Path(os.path.abspath(root)).parents, *Path(os.path.realpath(root)).parents]
        above = set(map(_identity, parents))
        found, pending, links = [], [], [str(root)]
        while pending or links:
            if not pending:  # real folders first
                pending.append(heapq.heappop(links))
            folder = pending.pop()
            key = _identity(folder)
            if key in above or key in self.folders:
                self.repeated.append(folder)
                continue
            self.folders[key] = folder
            folders, files, linked = [], [], []
            for entry in _entries(folder):
                if _is_folder(entry):
                    if entry.is_symlink():
                        heapq.heappush(links, entry.path)
                    else:
                        folders.append(entry.path)
                elif entry.name.lower().endswith(EXTENSIONS):
                    if not entry.is_symlink() and not entry.is_file():
                        raise UserError(f"{entry.path} is a pipe, a socket or a device and no image; remove it")
                    (linked if entry.is_symlink() else files).append(entry.name)
            pending += sorted(folders, reverse=True)
            found.append((folder, files, linked))
        self._collect(sorted(found))

    def _collect(self, found: Sequence[tuple[str, list[str], list[str]]]) -> None:
        seen: set[Identity] = set()
        if any(linked for _, _, linked in found):  # else there is nothing to compare: no file is looked at
            seen = {_identity(os.path.join(folder, name)) for folder, files, _ in found for name in files}
        for folder, files, linked in found:
            for name in sorted(linked):
                key = _identity(os.path.join(folder, name))
                if key and key in seen:
                    self.repeated.append(os.path.join(folder, name))
                else:  # also if it leads nowhere: who reads it says so
                    seen.add(key)
                    files.append(name)
            prefix = os.path.join(folder, "")
            paths = [prefix + name for name in sorted(files)]
            self.paths += paths
            self._find_alike(paths)

    def _find_alike(self, paths: Sequence[str]) -> None:
        stems = [path.rpartition(".")[0].lower() for path in paths]
        if len(set(stems)) == len(stems):
            return
        first: dict[str, str] = {}
        for stem, path in zip(stems, paths):
            other = first.setdefault(stem, path)
            if other != path:
                self.alike.append((other, path))


def _identity(path: str | Path) -> Identity:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}; check the path and its permissions") from None
