"""Models for other runtimes: rewriting, writing, checking against PyTorch and timing (docs/deploy.md)."""

from .cores import CORES, prepare
from .own_model import export

__all__ = ["CORES", "export", "prepare"]
