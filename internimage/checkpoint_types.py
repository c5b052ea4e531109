"""Safe replacements for the numpy and mmengine objects in checkpoints.

`torch.load(weights_only=True)` calls everything on its allow-list with arguments from the file. numpy's own functions
are not safe there: a dtype with object fields turns bytes of the file into pointers. The replacements below accept only
numbers. They are registered for the whole process, because other loaders (timm's, mmengine's) read the same files.
"""

import math
import re
import sys
from collections import OrderedDict

import numpy as np
import torch

from .errors import CheckpointError

__all__: list[str] = []

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


def _refuse(what: str) -> CheckpointError:
    return CheckpointError(
        f"it holds {what}, which is not loaded for safety; save only its weights with "
        "torch.save(model.state_dict(), ...) on the machine where it was made"
    )


class _DType:
    """Replaces `numpy.dtype`. numpy accepts an object with the attribute `dtype` as a dtype."""

    def __init__(self, name: object, align: object = False, copy: object = False) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise _refuse(f"the numpy dtype {str(name)[:40]!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: object) -> None:
        # Version, byte order, then entries of structured dtypes: sub-array, names, fields, size, alignment, flags.
        plain = isinstance(state, tuple) and len(state) == 8 and state[2:] == (None, None, None, -1, -1, 0)
        if not plain or state[0] != 3 or state[1] not in ("<", ">", "|"):
            raise _refuse("a numpy dtype of several parts")
        self.dtype = self.dtype.newbyteorder(state[1])

    def __reduce__(self) -> tuple:
        return self.dtype.__reduce__()


class _Array(np.ndarray):
    """Replaces `numpy.ndarray` in a pickle; saved again it is a plain array."""

    def __new__(cls, *args: object) -> "_Array":
        raise _refuse("a numpy array made in an unusual way")

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse("a numpy array in an unknown form")
        _, shape, dtype, fortran, data = state
        # A second state would free memory that a tensor or a view may share with the first one.
        if vars(self).setdefault("_is_set", False) or not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise _refuse("a numpy array of something else than numbers")
        sizes = shape if isinstance(shape, tuple) else (-1,)
        if any(type(size) is not int or size < 0 for size in sizes):
            raise _refuse("a numpy array without a proper shape")
        if math.prod(sizes) * dtype.dtype.itemsize != len(data):
            raise _refuse(f"a numpy array whose shape does not fit its {len(data)} bytes")
        super().__setstate__((1, sizes, dtype.dtype, bool(fortran), data))
        self._is_set = True

    def __reduce__(self) -> tuple:
        return self.view(np.ndarray).__reduce__()


def _reconstruct(kind: object, *_: object) -> _Array:
    """Replaces numpy's function of this name: returns an empty array; `__setstate__` follows."""
    if kind is not _Array:
        raise _refuse("a numpy array of an unknown class")
    return np.ndarray.__new__(_Array, 0)


def _scalar(dtype: object, data: object = None) -> np.generic:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise _refuse("a numpy scalar of something else than a number")
    return np.frombuffer(data, dtype.dtype)[0]


class _History:
    """Replaces mmengine's `HistoryBuffer`, two arrays of numbers; becomes one if mmengine is imported."""

    def __setstate__(self, state: object) -> None:
        keys = {"max_length", "_log_history", "_count_history"}
        # The saved methods are the same for every history.
        if not isinstance(state, dict) or not keys <= state.keys() <= keys | {"statistics_methods"}:
            raise _refuse("a log history with other contents than mmengine writes")
        arrays = [state[key] for key in ("_log_history", "_count_history")]
        if type(state["max_length"]) is not int or any(type(a) is not _Array or a.ndim != 1 for a in arrays):
            raise _refuse("a log history that is not made of lists of numbers")
        log, count = (np.array(array) for array in arrays)  # plain arrays of their own memory
        self.__dict__.update(max_length=state["max_length"], _log_history=log, _count_history=count)
        if mmengine := sys.modules.get("mmengine.logging.history_buffer"):
            self.__class__ = mmengine.HistoryBuffer
            self._set_default_statistics()


def _history_method(owner: object, name: object) -> None:
    if owner is not _History or name not in ("min", "max", "current", "mean"):
        raise _refuse(f"a call of getattr for {str(name)[:40]!r}")


torch.serialization.add_safe_globals(
    [
        (OrderedDict, "yacs.config.CfgNode"),  # read as a plain mapping, so that yacs code never runs
        (_DType, "numpy.dtype"),
        (_Array, "numpy.ndarray"),
        # numpy 1 and 2
        *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_history_method, "builtins.getattr"),  # names the methods of a history
    ]
)
