"""The launch scripts of the three tasks, with `echo` in the place of Python, and a shell script for Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from internimage.preemption import EXIT_CODE

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


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_batch_job_that_was_stopped_is_queued_again(task, tmp_path):
    for name, text in (("srun", 'echo "$@"; exit $CODE'), ("scontrol", 'echo "scontrol $@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def run(code: int, **variables: str) -> tuple[int, str]:
        environment = {**os.environ, "PATH": path, "CODE": str(code), **variables}
        command = ["bash", f"{task}/slurm_train.sh", "part", "name", CONFIG, "2"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, printed = run(EXIT_CODE, SLURM_JOB_ID="7")
    assert code == EXIT_CODE and "--signal=USR1@120" in printed and printed.endswith("scontrol requeue 7\n")
    code, printed = run(EXIT_CODE)
    assert code == EXIT_CODE and "start the same command again" in printed and "requeue" not in printed
    for other in (0, 1):
        code, printed = run(other, SLURM_JOB_ID="7")
        assert code == other and "requeue" not in printed
