"""List the released models: `python -m internimage.zoo`. Tables with links: docs/model_zoo.md, `tools/zoo.py`."""

from collections.abc import Sequence
from itertools import groupby

from ..errors import ArgumentParser
from . import releases

__all__ = ["main"]


def main(argv: Sequence[str] = ()) -> None:
    """Print the models of each task with their published facts."""
    ArgumentParser(description="List the released models.").parse_args(argv)
    for task, rows in groupby(sorted(releases(), key=lambda row: row.task), key=lambda row: row.task):
        print(f"{task}:")
        for row in rows:
            facts = ", ".join(f"{key} {value}" for key, value in row.facts.items())
            print(f"  {row.name if row.checkpoint else '(no weights released)':60} {facts}")


if __name__ == "__main__":
    main()
