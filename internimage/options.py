"""What options that several scripts have do alike; docs/options.md lists their names."""

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator

from .errors import UserError

__all__ = ["add_settings", "setting_pairs"]


def add_settings(
    parser: ArgumentParser, help: str = "change configuration keys, given as KEY VALUE or KEY=VALUE"
) -> None:
    """Add `--opts`, a list of words for `setting_pairs`."""
    form = {"nargs": "+", "action": "extend", "default": [], "metavar": "KEY VALUE"}
    parser.add_argument("--opts", "--cfg-options", **form, help=help)


def setting_pairs(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Keys and values of `--opts`, given as KEY VALUE or KEY=VALUE. Raises `UserError` for a key without a value."""
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        value = value if equals else next(rest, None)
        if value is None:
            raise UserError(f"--opts expects KEY VALUE or KEY=VALUE, but {key!r} has no value")
        yield key, value
