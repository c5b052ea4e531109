"""Run things that may take the process with them in processes of their own."""

import json
import os
import subprocess
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
    """Run a helper script of this folder; return the exit code and last line of each thing that it tried."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: tuple(found) for name, found in json.loads(result.stdout.splitlines()[-1]).items()}
