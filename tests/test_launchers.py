"""The torchrun scripts of the three tasks, with `echo` in the place of Python."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "README.md"  # any file that exists


def echoed(script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHON": "echo"}
    run = subprocess.run(["bash", script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else run.stderr


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_number_of_processes_comes_first_or_as_in_the_mm_series(task):
    script = f"{task}/dist_train.sh"
    first = echoed(script, "2", CONFIG, "--amp")
    assert "--nproc_per_node 2" in first and CONFIG in first and "--amp" in first
    assert echoed(script, CONFIG, "2", "--amp") == first
    assert "usage:" in echoed(script, CONFIG)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_testing_takes_the_number_of_processes_first_or_last(task):
    script = f"{task}/dist_test.sh"
    first = echoed(script, "2", CONFIG, "LICENSE", "--tta")
    assert f"test.py {CONFIG} LICENSE --tta" in first
    assert echoed(script, CONFIG, "LICENSE", "2", "--tta") == first
    assert "usage:" in echoed(script, "2", CONFIG)
