"""`python -m ops_dcnv3`: print which backends are available, and why the others are not."""

import platform
import sys

import torch

from . import backends

__all__ = ["report"]


def report() -> str:
    """Return the table of backends."""
    lines = [f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}", ""]
    for name, reason in backends.status().items():
        yes = f"yes, {backends.cpu_capability()}" if name == "cpu" else "yes"
        lines.append(f"  {name:<8}{yes if reason is None else f'no: {reason}'}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    chosen = ", ".join(f"{backends.select('auto', torch.device(device))} for {device} tensors" for device in devices)
    return "\n".join([*lines, "", f"auto uses {chosen}"])


if __name__ == "__main__":
    try:
        print(report())
    except backends.BackendError as error:
        sys.exit(f"error: {error}")
