"""Write figures, without pyplot, so that matplotlib's backend does not change."""

from pathlib import Path

from matplotlib.figure import Figure

from .errors import UserError

__all__ = ["save_figure"]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure and print its path. Raises `UserError` if the path is not writable or its type is unknown."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from None
    print(f"wrote {path}")
