"""Run things that may take the process with them, each in a child of its own."""

import os
import sys
import tempfile
from collections.abc import Callable

__all__ = ["in_child"]


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Run `work` in a forked child.

    Returns:
        its exit code (128 + signal for one that was killed, 2 for a `UserError`, 1 for another exception), and the last
        line that it wrote.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                work()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException as error:
                code = 2 if any(kind.__name__ == "UserError" for kind in type(error).__mro__) else 1
                print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        lines = output.read().strip().splitlines()
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code, lines[-1] if lines else ""
