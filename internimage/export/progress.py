"""Progress of an export: its phases are printed, its libraries' logs are silenced."""

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator

__all__ = ["phase", "quiet"]


@contextlib.contextmanager
def phase(doing: str) -> Iterator[None]:
    """Print one line to stderr: what is being done, and then how long it took."""
    print(f"{doing} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    except BaseException:
        print(file=sys.stderr)  # the error's own line follows
        raise
    print(f" {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and logs below errors: messages of exporters and compilers that the user cannot act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
