"""Command lines of one dialect: the same option has the same name in all scripts, and docs/options.md lists it."""

import argparse
import importlib
import re
import runpy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from internimage.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "options.md"
ROOMS = ("classification", "demo", "detection", "internimage", "segmentation", "tensorrt", "tools")
IF_MAIN = 'if __name__ == "__main__":\n'


class Parsed(Exception):
    """A script has built its parser, the argument."""


def scripts() -> Iterator[Path]:
    """Every file that is run by name, but those of benchmarks, which are for maintainers."""
    for path in (ROOT / "predict_onnx.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))):
        if IF_MAIN in path.read_text(encoding="utf-8"):
            yield path.relative_to(ROOT)


def parser_of(script: Path, *arguments: str) -> argparse.ArgumentParser | None:
    """The parser that a script builds; None if it builds none."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(argparse.ArgumentParser, "parse_args", stop)
        patches.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patches.setattr(sys, "argv", [str(script), *arguments])
        patches.setattr(sys, "path", [str(ROOT), *sys.path])
        try:
            if script.parts[0] == "tensorrt":  # not importable: no __init__.py
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:  # what it does as a script, without another import, which would register data sets twice
                module = importlib.import_module(".".join(script.with_suffix("").parts))
                commands = (ROOT / script).read_text(encoding="utf-8").rpartition(IF_MAIN)[2]
                exec(textwrap.dedent(commands), vars(module))
        except Parsed as found:
            return found.args[0]
    return None


class Row(NamedTuple):
    """A row of the table."""

    scripts: list[str]
    aliases: list[str]

    def names(self, script: str) -> bool:
        return any(f"/{script}".endswith(f"/{name}") for name in self.scripts)


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    found = {str(script): parser_of(script) for script in scripts() if script != Path("internimage/__main__.py")}
    found |= {f"internimage {command}": parser_of(Path("internimage/__main__.py"), command) for command in COMMANDS}
    del found["classification/train_accelerate.py"]  # has the parser of train.py
    return {name: parser for name, parser in found.items() if parser}


def table() -> dict[str, Row]:
    rows = re.findall(r"^\| `(--[\w-]+)[^`]*` \|.*\|([^|]*)\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {
        name: Row(re.findall(r"`([^`]+)`", scripts), re.findall(r"`(--[\w-]+)", more)) for name, scripts, more in rows
    }


def options(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """The names of each option, but for those with underscores, and --help."""
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--") and "_" not in name]
        if names and names != ["--help"]:
            yield names


def is_for_users(script: str) -> bool:
    return not re.search("demo/|golden_data|make_subset", script)


def test_no_script_calls_an_option_of_the_table_otherwise(parsers):
    rows = table()
    wrong = []
    for script, parser in parsers.items():
        for name, *more in options(parser):
            if name in rows:
                wrong += [
                    f"{script}: {alias} of {name} is not in the table" for alias in {*more} - {*rows[name].aliases}
                ]
            elif meant := [row for row, (_, aliases) in rows.items() if name in aliases]:
                wrong.append(f"{script}: {name} comes first, expected {' or '.join(meant)} with {name} as an alias")
    assert not wrong, "\n".join(wrong)


def test_the_table_lists_every_script_that_has_an_option(parsers):
    wrong = []
    for name, row in table().items():
        having = {script for script, parser in parsers.items() if name in sum(options(parser), [])}
        listed = {script for script in parsers if row.names(script)}
        wrong += [f"{name}: {script} is not listed" for script in having - listed if is_for_users(script)]
        wrong += [f"{name}: {script} does not have it" for script in listed - having]
        wrong += [f"{name}: no script {item}" for item in row.scripts if not any(map(Row([item], []).names, parsers))]
    assert not wrong, "\n".join(wrong)


def test_every_option_of_two_scripts_is_in_the_table(parsers):
    users: dict[str, set[str]] = {}
    for script, parser in filter(lambda item: is_for_users(item[0]), parsers.items()):
        # Detection and segmentation share their parsers, and so do all export.py.
        kind = re.sub("^(detection|segmentation)/|^.*/(?=export.py)", "", script)
        for name, *_ in options(parser):
            users.setdefault(name, set()).add(kind)
    shared = {name for name, kinds in users.items() if len(kinds) > 1}
    assert len(shared) > 20 and not shared - table().keys()


def test_the_originals_spellings_are_accepted(parsers):
    for script, names in {
        "detection/train.py": "--work-dir --cfg-options --resume --amp --auto-scale-lr --launcher",
        "segmentation/test.py": "--work-dir --out --show-dir --cfg-options --launcher --tta",
        "detection/image_demo.py": "--out --score-thr --device",
        "segmentation/get_flops.py": "--shape --cfg-options",
        "classification/train.py": "--cfg --opts --data-path --data_path --batch-size --batch_size --resume --eval",
        "predict_onnx.py": "--out",
    }.items():
        assert not {*names.split()} - parsers[script]._option_string_actions.keys(), script
