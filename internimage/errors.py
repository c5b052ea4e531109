"""Errors that a user can correct, and how command-line scripts report them."""

import argparse
import difflib
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

__all__ = ["ArgumentParser", "UserError", "CheckpointError", "exit_on_user_error"]

T = TypeVar("T")


class UserError(Exception):
    """Bad input. The message is one line: what was wrong, what was expected, what to do."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit the model."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser whose errors are one line, with the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        prefix, _, unknown = message.partition("unrecognized arguments: ")
        option = unknown.split("=")[0].split(" ")[0]
        if not prefix and option.startswith("-"):
            known = [name for name in self._option_string_actions if "_" not in name]  # aliases have underscores
            near = difflib.get_close_matches(option.replace("_", "-"), known, n=1, cutoff=0.6)
            message = f"unknown option {option}{f'; did you mean {near[0]}?' if near else ''}"
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


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
