"""Worker processes of data loaders: their end at exit, and an explanation when one dies."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError

__all__ = ["explained_worker_death"]


@atexit.register
def _end_workers() -> None:
    """Kill the remaining workers: they ignore Python's signal at exit, and one that is stopped would block it."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report them as dead by accident
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join(1)
            if child.is_alive():  # blocked in the file system, where no signal ends it; do not wait for it
                multiprocessing.process._children.discard(child)


@contextmanager
def explained_worker_death(option: str) -> Iterator[None]:
    """Turn the RuntimeError that PyTorch raises when a worker dies into a `UserError`.

    Args:
        option: of the command line, for the message: sets the number of workers.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"{str(error).partition('. ')[0]}; if memory ran out, use fewer with {option} ...; start again to resume "
            "from the last checkpoint"
        ) from None
