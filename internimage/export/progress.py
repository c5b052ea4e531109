"""What an export tells on the way: its phases, since a large model takes minutes, and not its libraries' logs."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

__all__ = ["phase", "quiet_logs"]


@contextlib.contextmanager
def phase(doing: str) -> Iterator[None]:
    """Write one line to stderr: what is being done, at once, and how long it took, afterwards."""
    print(f"{doing} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print(file=sys.stderr)  # the error's own line follows
        raise
    print(f" {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Silence logs up to warnings: steps of exporters and compilers that are no news to the user."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
