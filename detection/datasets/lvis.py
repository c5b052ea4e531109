"""LVIS (Gupta et al., 2019): its published evaluation package on current numpy."""

import types

import numpy as np

__all__ = ["repair_lvis"]


class _NumpyWithOldNames(types.ModuleType):
    """numpy with `np.float`, which 1.24 removed."""

    float = float

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


def repair_lvis() -> bool:
    """Make `lvis.LVISEval` run on numpy 1.24 and later. Return whether the package `lvis` is installed."""
    try:
        import lvis.eval
    except ImportError:
        return False
    if not hasattr(np, "float"):
        lvis.eval.np = _NumpyWithOldNames("numpy")
    return True
