"""List the released models: `python -m internimage.zoo`. Tables with links: docs/model_zoo.md, `tools/zoo.py`."""

from itertools import groupby

from . import releases

for task, rows in groupby(sorted(releases(), key=lambda row: row.task), key=lambda row: row.task):
    print(f"{task}:")
    for row in rows:
        facts = ", ".join(f"{key} {value}" for key, value in row.facts.items())
        print(f"  {row.name if row.checkpoint else '(no weights released)':60} {facts}")
