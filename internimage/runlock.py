"""One run per folder."""

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

_NAME = "run.lock"
_held: list[TextIO] = []  # a closed file is no longer locked


def lock_run(folder: str | Path) -> None:
    """Keep other runs out of a folder for as long as this process lives.

    The operating system holds the lock, on `run.lock`: it ends with its owner, however that ended, and worker processes
    do not inherit it. On network file systems it works between machines if they share locks: NFS does, Lustre if
    mounted with `flock`. Where there are no locks, nothing is kept out.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    if fcntl is None:
        return
    path = Path(folder, _NAME)
    try:
        file = open(path, "a+")  # noqa: SIM115 (lives as long as the run)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; change the output folder or its permissions") from None
    try:
        # Not flock, whose locks live on in forked workers.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"another run is at work in {folder}: {owner}; wait for its end or stop it, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held.append(file)
