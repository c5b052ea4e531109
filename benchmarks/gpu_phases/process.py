"""Commands with a time limit that ends their children too."""

import os
import signal
import subprocess

__all__ = ["command"]


def command(arguments: list[str], seconds: float, environment: dict[str, str] | None = None) -> tuple[int | None, str]:
    """Run a command for at most so long. Return its code, None if it was ended for time, and what it printed."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=max(seconds, 0.1))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    finally:  # also when this process is told to end
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
