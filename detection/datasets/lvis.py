"""LVIS (Gupta et al., 2019): its evaluation package, as published, on present-day numpy."""

import types

import numpy as np

__all__ = ["repair_lvis"]


class _NumpyWithOldNames(types.ModuleType):
    """numpy with `np.float`, which it lost in 1.24."""

    float = float

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


def repair_lvis() -> bool:
    """Let `lvis.LVISEval` run on numpy 1.24 and later. Returns whether the package `lvis` is installed."""
    try:
        import lvis.eval
    except ImportError:
        return False
    if not hasattr(np, "float"):
        lvis.eval.np = _NumpyWithOldNames("numpy")
    return True
