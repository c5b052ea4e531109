"""Write files and folders atomically, and open files without blocking on pipes."""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

__all__ = [
    "atomic_path",
    "check_writable",
    "open_regular",
    "publish_folder",
    "remove",
    "remove_leftovers",
    "temporary_name",
]


def temporary_name(path: Path, mark: str = "") -> Path:
    """A name beside `path` that `remove_leftovers` knows."""
    return path.with_name(f".{path.name}{mark}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file atomically: `path` has either its old content or the complete new one, even after a kill.

    Yields a temporary path in the same folder, which is renamed to `path` at the end.

    Raises:
        UserError: the file cannot be written. The old content is unchanged.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # On a full disk torch.save raises a RuntimeError about file positions.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {cause.strerror or cause}; free space there or change permissions, then start again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: Path) -> None:
    """Create the folder of `path`. Raises `UserError` if it is not writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from None


def publish_folder(temporary: Path, path: Path) -> None:
    """Rename a complete folder to `path`. If there is an old one, a kill between the two renames leaves none there."""
    old = temporary_name(path, ".old")
    _sync_folder(temporary)
    with suppress(FileNotFoundError):
        os.rename(path, old)
    os.rename(temporary, path)
    _sync_folder(path.parent)
    remove(old)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure before the caller deletes older files."""
    with suppress(OSError):  # some network file systems cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files and folders that killed processes left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            remove(path)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes.

    Raises:
        OSError: the file cannot be opened, or is a pipe, a socket or a device, which could block forever.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file but a pipe, a socket or a device")
    return file
