"""Write figures, without pyplot, so that matplotlib's backend does not change, and pictures."""

from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .errors import UserError

__all__ = ["picture_path", "render", "save_figure"]


def picture_path(text: str) -> Path:
    """The type of an option that names a picture to write, whose format its suffix says."""
    # Some formats are known, but only for reading.
    if Image.registered_extensions().get(Path(text).suffix.lower()) not in Image.SAVE:
        raise ArgumentTypeError(f"{text} cannot be written; use a suffix of a picture format, as in picture.png")
    return Path(text)


def render(figure: Figure) -> Image.Image:
    """The picture of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def save_figure(figure: Figure | Image.Image, path: Path) -> None:
    """Write a figure and print its path. Raises `UserError` if the path is not writable or its type is unknown."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.save(path) if isinstance(figure, Image.Image) else figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from None
    print(f"wrote {path}")
