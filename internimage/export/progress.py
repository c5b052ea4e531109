"""What an export is doing: writing a large model takes minutes in which nothing else is printed."""

import contextlib
import sys
import time
from collections.abc import Iterator

__all__ = ["phase"]


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
