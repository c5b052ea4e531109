"""Checkpoints that a reader must refuse: pickles that ask numpy, or what else is on the allow-list, for too much."""

import pickle
from _codecs import encode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = ["FORGED", "write"]

POINTER = b"AAAAAAAA"  # eight bytes, a pointer if numpy takes them for an object
_reconstruct = np.empty(0).__reduce__()[0]
_scalar = np.float64(0).__reduce__()[0]


class Call:
    """A value that is pickled as a call of a function, and `states` that are set on its result."""

    def __init__(self, function: Callable, *arguments: object, states: tuple = ()) -> None:
        self.function, self.arguments, self.states = function, arguments, states

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


class Pickler(pickle._Pickler):
    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        super().save(obj, save_persistent_id)
        if isinstance(obj, Call):
            for state in obj.states:
                super().save(state)
                self.write(pickle.BUILD)


def dtype(name: object, *, state: tuple = ()) -> Call:
    return Call(np.dtype, name, False, True, states=(state,) if state else ())


def plain(name: str = "f8") -> Call:
    return dtype(name, state=(3, "<", None, None, None, -1, -1, 0))


def array(kind: object, data: object = POINTER, shape: object = (1,), *more: tuple) -> Call:
    return Call(_reconstruct, np.ndarray, (0,), b"b", states=((1, shape, kind, False, data), *more))


def object_fields() -> Call:
    """A float64 whose fields say that its bytes are an object."""
    return dtype("f8", state=(3, "<", None, ("a",), {"a": (dtype("O"), 0)}, 8, 8, 0))


def history(**changes: object) -> Call:
    state = {"max_length": 9, "_log_history": array(plain()), "_count_history": array(plain())} | changes
    return Call(HistoryBuffer, states=(state,))


class Getattr:
    """Pickled as `getattr(owner, name)`."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple:
        return getattr, (self.owner, self.name)


FORGED: dict[str, Callable[[], object]] = {
    "array of a float with object fields": lambda: array(object_fields()),
    "scalar of a float with object fields": lambda: Call(_scalar, object_fields(), POINTER),
    "history of a float with object fields": lambda: history(_log_history=array(object_fields())),
    "objects": lambda: array(dtype("O"), [1]),
    "objects without their flag": lambda: array(dtype("O", state=(3, "|", None, None, None, -1, -1, 0))),
    "scalar object": lambda: Call(_scalar, dtype("O"), POINTER),
    "fields by argument": lambda: array(dtype([("a", "O"), ("b", "i8")]), [(1, 2)]),
    "fields by text": lambda: array(dtype("f8,O"), POINTER * 2),
    "fields that overlap": lambda: array(dtype({"names": ["a"], "formats": ["O"], "offsets": [0], "itemsize": 8})),
    "sub-array by argument": lambda: array(dtype(("f8", (1 << 40,)))),
    "sub-array by state": lambda: array(dtype("f8", state=(3, "<", (dtype("O"), (1,)), None, None, -1, -1, 0))),
    "larger items by state": lambda: array(dtype("f8", state=(3, "<", None, None, None, 1 << 30, 8, 0))),
    "void": lambda: array(dtype("V8")),
    "datetime": lambda: array(dtype("M8[s]", state=(4, "<", None, None, None, -1, -1, 0, ({}, (b"s", 1, 1, 1))))),
    "text": lambda: array(dtype("U2")),
    "huge shape": lambda: array(plain(), POINTER, (1 << 40,)),
    "shape that overflows": lambda: array(plain(), POINTER, (1 << 62, 4)),
    "shape that overflows to nothing": lambda: array(plain(), Call(encode, "", "latin1"), (1 << 62, 4)),
    "negative shape": lambda: array(plain(), POINTER, (-1,)),
    "two negative sizes": lambda: array(plain(), POINTER, (-1, -1)),
    "shape of floats": lambda: array(plain(), POINTER, (1.0,)),
    "negative strides": lambda: Call(np.ndarray, (4,), plain(), bytearray(POINTER), 0, (-8,)),
    "memory never written": lambda: Call(np.ndarray, (1 << 20,), plain()),
    "array in an array": lambda: array(plain(), [array(plain())]),
    "second state": lambda: array(plain(), POINTER, (1,), (1, (1,), plain(), False, POINTER)),
    "other class": lambda: Call(_reconstruct, HistoryBuffer, (0,), b"b"),
    "attributes of an array": lambda: Call(
        torch._tensor._rebuild_from_type_v2, _reconstruct, np.ndarray, (np.ndarray, (0,), b"b"), {"dtype": "O"}
    ),
    "getattr of another class": lambda: Getattr(np.ndarray, "tofile"),
    "getattr of another method": lambda: Getattr(HistoryBuffer, "__init__"),
    "method of a history replaced": lambda: history(statistics_methods={"mean": Getattr(HistoryBuffer, "__class__")}),
    "history of other things": lambda: history(_log_history=[1, 2]),
    "history with other attributes": lambda: history(__class__=1),
    "code": lambda: Call(print, "code ran"),
}


def write(name: str, path: Path, content: dict) -> Path:
    """Save `content` and, last in it, the forged value of that name, as a checkpoint; return `path`."""
    pickler = SimpleNamespace(Pickler=Pickler, __name__="forged")
    torch.save({**content, "forged": FORGED[name]()}, path, pickle_module=pickler)
    return path
