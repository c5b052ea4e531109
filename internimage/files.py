"""Files written so that neither a kill nor a full disk leaves half of one, and read without waiting for a pipe."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

__all__ = ["atomic_path", "open_regular", "remove_leftovers"]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file so that `path` holds either its old content or all of the new, even if the process is killed.

    Gives the path to write to, in the same folder; at the end that file gets its name.

    Raises:
        UserError: the file cannot be written. What was there is whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save turns a full disk into a RuntimeError about file positions.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write {path}: {cause.strerror or cause}; free space there or change permissions, then start again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power failure, too, before an older file is deleted for it."""
    with suppress(OSError):  # some network file systems do not open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files that `atomic_path` of killed processes left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device, which might be waited for in vain.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file but a pipe, a socket or a device")
    return file
