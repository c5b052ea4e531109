"""Write docs/configuration.md from the table of classification's configuration, `classification/configs/defaults.py`.

python tools/configuration_page.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from classification.configs.defaults import SETTINGS

__all__ = ["PAGE", "configuration_page"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

_START = """\
# Configuration of classification

<!-- Written by tools/configuration_page.py from classification/configs/defaults.py. Change the table there. -->

A YAML file holds the keys that differ from the defaults, as nested sections:

```yaml
BASE: [internimage_t_1k_224.yaml]
TRAIN:
  EPOCHS: 30
  EMA: {ENABLE: false}
```

`BASE` names files to start from, relative to the file that names them. `--opts KEY VALUE ...` and the options of
`python classification/train.py --help` change single keys afterwards. Words such as `None`, `5e-4` and `[1, 2]` are
read as the Python values that they spell. An unknown key, a value of another type or outside its interval, and values
that do not fit together are errors. `[0, 1)` means from 0 to below 1.
"""


def configuration_page() -> str:
    """The page, as Markdown: one table for each section."""
    sections: dict[str, list[str]] = {}
    for key, setting in SETTINGS.items():
        section = key.rpartition(".")[0]
        row = (f"`{key}`", f"`{setting.default!r}`", setting.expected, setting.doc)
        sections.setdefault(section, []).append(f"| {' | '.join(row)} |\n")
    tables = [
        f"\n## {section or 'Run'}\n\n| key | default | value | meaning |\n|---|---|---|---|\n{''.join(rows)}"
        for section, rows in sorted(sections.items(), key=lambda item: item[0] == "")
    ]
    return _START + "".join(tables)


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")
