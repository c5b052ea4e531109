"""Errors that a user can mend, and how command-line scripts report them."""

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

__all__ = ["UserError", "CheckpointError", "exit_on_user_error"]

T = TypeVar("T")


class UserError(Exception):
    """Bad input. The message says in one line what was wrong, what was expected and what to do next."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that does not fit the model."""


def exit_on_user_error(main: Callable[..., T]) -> Callable[..., T]:
    """Decorate a script's `main` so that a `UserError` ends in one line on stderr and exit code 2, Ctrl-C in 130."""

    @functools.wraps(main)
    def wrapper(*args: object, **kwargs: object) -> T:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapper
