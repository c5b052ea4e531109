"""`python -m internimage COMMAND`: one command a task, each the `main(argv)` of a module of its own."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from .errors import UserError, exit_on_user_error

__all__ = ["COMMANDS", "main"]

# Command: the module whose `main(argv)` it calls, and what `--help` says about it. Modules are imported when called.
COMMANDS = {
    "memory": ("internimage.planning.plan", "memory and communication of training on several GPUs, from shapes"),
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Call the command that the first argument names with the other arguments."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:12}{summary}" for command, (_, summary) in COMMANDS.items()]
        print("usage: python -m internimage COMMAND [options]", "", *lines, sep="\n")
        print("\nOptions of a command: python -m internimage COMMAND --help")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1) or COMMANDS
        raise UserError(f"unknown command {name!r}; choose {', '.join(near)}")
    importlib.import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    main()
