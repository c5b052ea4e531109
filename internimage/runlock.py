"""Lock the output folder of a run."""

import os
import socket
import time
from pathlib import Path
from typing import TextIO

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["lock_run"]

_held: list[TextIO] = []  # closing a file releases its lock


def lock_run(folder: str | Path) -> None:
    """Lock a folder against other runs until this process exits.

    The operating system releases the lock on `run.lock` when its owner ends, however it ends; worker processes do not
    inherit it. It works between machines if the network file system shares locks: NFS does, Lustre if mounted with
    `flock`. Without locks (Windows, some file systems) this function has no effect.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    if fcntl is None:
        return
    path = Path(folder, "run.lock")
    try:
        file = open(path, "a+")  # noqa: SIM115 (lives as long as the run)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; change the output folder or its permissions") from None
    try:
        # Not flock: forked workers would inherit the lock.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"another run uses {folder}: {owner}; wait until it ends, stop it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held.append(file)
