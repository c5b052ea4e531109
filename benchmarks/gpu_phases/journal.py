"""The JSON file of a phase, written anew after every row, so that a process that dies loses only the row it was at."""

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .plan import Deadline

__all__ = ["Journal", "LostDevice", "read"]

# After these a process can do nothing more on its GPU.
_FATAL = ("illegal memory access", "misaligned address", "device-side assert", "unspecified launch failure",
          "illegal instruction", "hardware stack error", "invalid program counter")  # fmt: skip


class LostDevice(Exception):
    """An error that leaves the process without its GPU. What is left of the phase needs a new process."""


class Journal:
    """Rows of one phase by name. Opened again by a new process, it remembers the rows that an earlier one began."""

    def __init__(self, folder: Path, phase: str) -> None:
        self.path = folder / f"{phase}.json"
        self.data = read(folder, phase) or {"phase": phase, "date": time.strftime("%Y-%m-%d %H:%M"), "rows": {}}
        for row in self.data["rows"].values():
            if row["status"] == "started":
                row.update(status="failed", error="the process ended, or was ended at its deadline, during this row")

    def note(self, **values: Any) -> None:
        """Record facts about the phase as a whole."""
        self.data.update(values)
        self.write()

    def write(self) -> None:
        """Replace the file, which is complete at any moment."""
        partial = self.path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self.data, indent=1, default=str) + "\n")
        os.replace(partial, self.path)

    @contextlib.contextmanager
    def row(self, name: str, deadline: Deadline | None = None, needs: float = 0.0) -> Iterator[dict | None]:
        """Give the row's dictionary to fill, or None if it was done before or the time left is too short.

        An exception becomes the row's `error`; its status is then `failed`, else `ok` unless the body set another.

        Raises:
            LostDevice: the exception means that this process can run nothing more on the GPU.
        """
        rows = self.data["rows"]
        if name in rows and rows[name]["status"] != "left out":
            yield None
            return
        if deadline is not None and deadline.left < needs:
            rows[name] = {"status": "left out", "error": f"{needs:.0f} s were needed, {deadline.left:.0f} left"}
            yield None
            return
        row = rows[name] = {"status": "started"}
        self.write()
        start = time.time()
        lost = None
        try:
            yield row
        except Exception as error:
            row.update(status="failed", error=_brief(error))
            if any(words in str(error) for words in _FATAL):
                lost = error
        row["seconds"] = round(time.time() - start, 2)
        if row["status"] == "started":
            row["status"] = "ok"
        self.write()
        if lost:
            raise LostDevice(str(lost)) from lost


def read(folder: Path, phase: str) -> dict | None:
    """Return what a phase has written so far, None if it has not begun."""
    path = Path(folder) / f"{phase}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _brief(error: Exception) -> str:
    """Where it happened, then what, in one line of its own."""
    places = "".join(traceback.format_tb(error.__traceback__))[-1000:]
    return f"{places}{type(error).__name__}: {' '.join(str(error).split())[:500]}"
