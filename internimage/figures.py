"""Write figures. They are made without pyplot, so that importing this never touches matplotlib's back end."""

from pathlib import Path

from matplotlib.figure import Figure

from .errors import UserError

__all__ = ["save_figure"]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, making its folder, and say so. Raises `UserError` for an unwritable path or unknown type."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from None
    print(f"wrote {path}")
