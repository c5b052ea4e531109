"""The table of faults: each row with a check is run here, each other one names a test that exists."""

import ast
import shutil

import pytest
from in_children import ROOT
from table import FAULTS, markdown

CHECKED = [fault for fault in FAULTS if fault.check]


@pytest.mark.parametrize("fault", CHECKED, ids=[fault.name for fault in CHECKED])
def test_a_fault_does_no_harm(fault, tmp_path):
    if fault.name == "operator: random calls" and not shutil.which("g++"):
        pytest.skip("there is no g++")
    fault.check(tmp_path)


def test_the_table_has_sixty_faults_each_once_with_a_check_or_a_test_that_exists():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 60
    for fault in FAULTS:
        assert bool(fault.check) != bool(fault.test), fault.name
        if fault.test:
            file, function = fault.test.split("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, fault.test


def test_the_printed_table_has_a_row_for_each_fault():
    rows = markdown().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [fault.name for fault in FAULTS]
