"""`internimage COMMAND` and `python -m internimage COMMAND`: each command is a function of one argument, `argv`."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from .errors import UserError, exit_on_user_error

__all__ = ["COMMANDS", "main"]

# Command: the function that it calls, and what `--help` says about it. Modules are imported when called.
COMMANDS = {
    "predict": ("internimage.commands:predict", "classify, detect or segment images, folders and videos"),
    "train": ("internimage.commands:train", "train a model of any task"),
    "evaluate": ("internimage.commands:evaluate", "evaluate a model on its test data"),
    "verify": ("internimage.verify:main", "evaluate released models and compare with the published figures"),
    "export": ("internimage.commands:export", "write ONNX and other formats"),
    "models": ("internimage.zoo.__main__:main", "list the released models"),
    "flops": ("internimage.commands:flops", "parameters and FLOPs of a model"),
    "memory": ("internimage.planning.plan:main", "memory and communication of training on several GPUs, from shapes"),
    "visualize": ("internimage.commands:visualize", "draw where a model looks and what it computes"),
    "doctor": ("internimage.commands:doctor", "which implementations of the operator run here"),
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Call the command that the first argument names with the other arguments."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:12}{summary}" for command, (_, summary) in COMMANDS.items()]
        print("usage: internimage COMMAND [options]", "", *lines, sep="\n")
        print("\nOptions of a command: internimage COMMAND --help")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1) or COMMANDS
        raise UserError(f"unknown command {name!r}; choose {', '.join(near)}")
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        getattr(importlib.import_module(module), function)(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # `internimage models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
