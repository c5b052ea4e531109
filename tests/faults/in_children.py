"""Run things that may take the process with them in processes of their own."""

import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["ENVIRONMENT", "ROOT", "in_child", "results_of"]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


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
                output.reconfigure(line_buffering=True)
                sys.stdout = sys.stderr = output  # pytest has put files of its own there
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


def results_of(script: str, *arguments: object) -> dict[str, tuple[int, str]]:
    """Run a helper script of this folder; return the exit code and last line of each thing that it tried.

    In a forked child: a new interpreter would take seconds to import the frameworks.
    """

    def work() -> None:
        signal.alarm(600)
        os.chdir(ROOT)
        sys.argv = [script, *map(str, arguments)]
        runpy.run_path(str(Path(__file__).parent / script), run_name="__main__")

    code, line = in_child(work)
    assert code == 0, f"{script} ended with code {code}: {line}"
    return {name: tuple(found) for name, found in json.loads(line).items()}
