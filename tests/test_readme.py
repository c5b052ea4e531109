"""What the README promises exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_file_that_is_named_or_linked_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    scripts = re.findall(r"(?<![\w/])((?:classification|docs|tests|benchmarks)/[\w./-]+\.\w+)", README)
    missing = [path for path in {*links, *scripts} if not (ROOT / path).exists()]
    assert not missing
