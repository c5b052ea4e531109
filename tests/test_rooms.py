"""How the folders depend on each other: a lower one never imports a higher one, and nothing goes in circles.

Imports are read from the source, inside functions too, so nothing is imported here.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From low to high: a module imports its own room and lower ones.
ROOMS = {
    "ops_dcnv3": 0,
    "internimage": 1,
    "internimage.export": 2,
    "internimage.hf": 2,
    "internimage.visualization": 3,
    "internimage.mm": 3,
    "demo": 4,
    **dict.fromkeys(("classification", "detection", "segmentation"), 5),
    "internimage.hf.convert": 6,  # classifiers by their names or checkpoints
    "internimage.loading": 7,  # models of any task, also in transformers' layout
    "internimage.commands": 8,
    "internimage.verify": 8,
    "tools": 7,
}
PACKAGES = [room for room in ROOMS if "." not in room]


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    _module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "configs" not in path.parts
}


def _imports(name: str) -> set[str]:
    """Our modules that a module imports, at the top or inside functions."""
    path, found = FILES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                part = f"{source}.{alias.name}"
                found.add(part if part in FILES else source)
    return found & FILES.keys()


IMPORTS = {name: _imports(name) for name in FILES}


def _room(module: str) -> str:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package):
    graph = {name: used for name, used in IMPORTS.items() if name.split(".")[0] == package}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_room_imports_a_higher_one_and_no_task_another():
    pairs = [(name, used) for name, all_used in IMPORTS.items() for used in all_used if _room(name) != _room(used)]
    wrong = [f"{name} imports {used}" for name, used in pairs if ROOMS[_room(name)] <= ROOMS[_room(used)]]
    assert not wrong


def test_the_graph_holds_the_imports_of_functions_and_of_relative_names():
    assert "internimage.checkpoint" in IMPORTS["internimage.variants"]  # from .checkpoint import ...
    assert "internimage.errors" in IMPORTS["internimage.mm.checks"]  # from ..errors import ...
    assert "internimage.export.quantize" in IMPORTS["internimage.export.cli"]  # inside a function


@pytest.mark.parametrize("name", [name for name, path in FILES.items() if path.name == "__init__.py"])
def test_every_folder_says_in_one_sentence_what_it_holds(name):
    text = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""
    sentence = " ".join(text.partition("\n\n")[0].split())
    assert sentence.endswith(".") and ". " not in sentence


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in FILES.values()}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]
