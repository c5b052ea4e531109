"""Write predictions to a folder: a picture for each image, a video for each video, and all results as JSON and CSV."""

import csv
import json
from pathlib import Path

import numpy as np

from .errors import UserError
from .results import Result

__all__ = ["PredictionFiles"]

_COLUMNS = ("source", "frame", "picture", "label", "name", "score", "x1", "y1", "x2", "y2", "pixels")


class PredictionFiles:
    """A context in which results are written as they come, so that an interruption loses none of them.

    `folder` gets `predictions.json`, a list of `Result.to_dict()`, `predictions.csv`, a row for each object or class
    (`_COLUMNS`), and the pictures and videos. Raises `UserError` if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._names: set[str] = set()
        self._video = None  # of OpenCV
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._json, self._csv = (
                open(folder / f"predictions.{kind}", "w", encoding="utf-8", newline="")  # noqa: SIM115
                for kind in ("json", "csv")
            )
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output") from None

    def __enter__(self) -> "PredictionFiles":
        self._json.write("[")
        self._rows = csv.DictWriter(self._csv, _COLUMNS, extrasaction="ignore")
        self._rows.writeheader()
        return self

    def __exit__(self, *_: object) -> None:
        if self._video:
            self._video.release()
        self._json.write("\n]\n")
        self._json.close()
        self._csv.close()

    def add(self, result: Result) -> Path:
        """Write one result; return the path of its picture or video."""
        picture = result.plot()
        if not result.frame:
            self.path = self._new_path(result)
        if result.frame is None:
            picture.save(self.path, quality=95)
        else:
            self._add_frame(result, np.asarray(picture))
        entry = {**result.to_dict(), "picture": self.path.name}
        self._json.write(f"{',' if self.count else ''}\n{json.dumps(entry, ensure_ascii=False)}")
        for item in entry.get("objects", entry.get("classes")):
            self._rows.writerow({**entry, **item, **dict(zip(("x1", "y1", "x2", "y2"), item.get("box", ())))})
        for file in (self._json, self._csv):
            file.flush()
        self.count += 1
        return self.path

    def _new_path(self, result: Result) -> Path:
        """A file named after the source; numbered if sources in several folders have the same name."""
        stem, suffix = Path(result.source).stem, ".jpg" if result.frame is None else ".mp4"
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return self.folder / f"{name}{suffix}"

    def _add_frame(self, result: Result, pixels: np.ndarray) -> None:
        import cv2  # which has read the video

        if result.frame == 0:
            if self._video:
                self._video.release()
            rate = cv2.VideoCapture(result.source).get(cv2.CAP_PROP_FPS) or 25.0
            size = pixels.shape[1], pixels.shape[0]
            self._video = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        self._video.write(np.ascontiguousarray(pixels[..., ::-1]))
