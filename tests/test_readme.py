"""What the README promises exists."""

import re
from pathlib import Path

from internimage import zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_tables_are_those_of_the_zoo():
    block = README.split("<!-- zoo:begin -->")[1].split("<!-- zoo:end -->")[0]
    assert block.strip() == zoo.readme_tables(), "fill the block with: python -m internimage.zoo --markdown"


def test_every_file_that_is_named_or_linked_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    scripts = re.findall(r"(?<![\w/])((?:classification|docs|tests|benchmarks)/[\w./-]+\.\w+)", README)
    missing = [path for path in {*links, *scripts} if not (ROOT / path).exists()]
    assert not missing
