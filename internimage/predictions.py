"""Write predictions to a folder: a picture for each image, a video for each video, and all results as JSON."""

import json
from pathlib import Path

import numpy as np

from .errors import UserError
from .results import Result

__all__ = ["PredictionFiles"]


class PredictionFiles:
    """A context in which results are written as they come, so that an interruption loses none of them.

    Args:
        folder: gets `predictions.json`, a list of `Result.to_dict()`, and the pictures and videos.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._names: set[str] = set()
        self._video: tuple[Path, object] | None = None  # its path and its writer
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._json = open(folder / "predictions.json", "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output") from None

    def __enter__(self) -> "PredictionFiles":
        self._json.write("[")
        return self

    def __exit__(self, *_: object) -> None:
        self._end_video()
        self._json.write("\n]\n")
        self._json.close()

    def add(self, result: Result) -> Path:
        """Write one result; return the path of its picture or video."""
        picture = result.plot()
        if result.frame is None:
            path = self._path(result.source, ".jpg")
            picture.save(path, quality=95)
        else:
            path = self._add_frame(result, np.asarray(picture))
        entry = {**result.to_dict(), "picture": path.name}
        self._json.write(f"{',' if self.count else ''}\n{json.dumps(entry, ensure_ascii=False)}")
        self._json.flush()
        self.count += 1
        return path

    def _path(self, source: str, suffix: str) -> Path:
        """A file named after a source; numbered if sources in several folders have the same name."""
        stem = Path(source.rpartition("?")[0] or source).stem
        name, number = f"{stem}{suffix}", 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}{suffix}"
        self._names.add(name)
        return self.folder / name

    def _add_frame(self, result: Result, pixels: np.ndarray) -> Path:
        import cv2  # which has read the video

        if result.frame == 0:
            self._end_video()
            rate = cv2.VideoCapture(result.source).get(cv2.CAP_PROP_FPS) or 25.0
            path = self._path(result.source, ".mp4")
            size = pixels.shape[1], pixels.shape[0]
            self._video = path, cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        path, writer = self._video
        writer.write(np.ascontiguousarray(pixels[..., ::-1]))
        return path

    def _end_video(self) -> None:
        if self._video:
            self._video[1].release()
            self._video = None
