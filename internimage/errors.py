"""Errors that a user can correct, and how command-line scripts report them."""

import functools
import sys
from collections.abc import Callable
from typing import TypeVar

__all__ = ["UserError", "CheckpointError", "exit_on_user_error"]

T = TypeVar("T")


class UserError(Exception):
    """Bad input. The message is one line: what was wrong, what was expected, what to do."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit the model."""


def exit_on_user_error(main: Callable[..., T]) -> Callable[..., T]:
    """Decorate a script's `main`: print a `UserError` to stderr and exit with code 2; on Ctrl-C, exit with 130."""

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
