"""Find image files below a folder. Symbolic links are followed; each folder and each linked image counts once."""

import heapq
import os
from collections.abc import Sequence
from pathlib import Path

from internimage.errors import UserError
from internimage.sources import IMAGES as EXTENSIONS

__all__ = ["EXTENSIONS", "ImageFiles", "class_folders"]

Identity = tuple[int, int] | None  # (st_dev, st_ino), the same for all paths to a file; None if it does not exist


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in `root`, sorted; hidden ones are ignored."""
    return sorted(entry.name for entry in os.scandir(root) if _is_folder(entry) and not entry.name.startswith("."))


class ImageFiles:
    """The image files below a folder.

    Real paths take precedence over links to them. A link to a folder that contains the link is a loop and is ignored.

    Attributes:
        paths: of the images, sorted by folder and then by name, as torchvision's ImageFolder does.
        folders: the path of each real folder by its identity.
        repeated: links to a folder or an image that was already found.
        alike: pairs of images in one folder whose names differ only in case or extension.

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
                        raise UserError(f"{entry.path} is a pipe, a socket or a device, not an image; remove it")
                    (linked if entry.is_symlink() else files).append(entry.name)
            pending += sorted(folders, reverse=True)
            found.append((folder, files, linked))
        self._collect(sorted(found))

    def _collect(self, found: Sequence[tuple[str, list[str], list[str]]]) -> None:
        seen: set[Identity] = set()
        if any(linked for _, _, linked in found):  # else there is nothing to compare: read no metadata
            seen = {_identity(os.path.join(folder, name)) for folder, files, _ in found for name in files}
        for folder, files, linked in found:
            for name in sorted(linked):
                key = _identity(os.path.join(folder, name))
                if key and key in seen:
                    self.repeated.append(os.path.join(folder, name))
                else:  # also a broken link: reading it raises an error
                    seen.add(key)
                    files.append(name)
            first: dict[str, str] = {}
            for path in (os.path.join(folder, name) for name in sorted(files)):
                self.paths.append(path)
                other = first.setdefault(path.rpartition(".")[0].lower(), path)
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
