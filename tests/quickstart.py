"""The scripts of docs/quickstart.md, for the tests that run them on small models."""

import re
from pathlib import Path

__all__ = ["quick_start"]

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"


def quick_start(task: str, model: str | Path, image: str | Path) -> str:
    """The script of a task with another model and another image."""
    script = PAGE.read_text(encoding="utf-8").partition(f"{task}:\n")[2].partition("```python\n")[2].partition("```")[0]
    script, models = re.subn(r'load\(".*?"', lambda _: f"load({str(model)!r}", script)
    script, images = re.subn(r'predict\(".*?"', lambda _: f"predict({str(image)!r}", script)
    assert models == images == 1
    return script
