"""The launch scripts of the three tasks, with `echo` in the place of Python, and a shell script for Slurm."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException

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


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_restarts_use_a_rendezvous_in_which_machines_hear_of_failures(task, monkeypatch):
    script = f"{task}/dist_train.sh"
    assert "--standalone --nproc_per_node 2 --max_restarts 0" in echoed(script, "2", CONFIG)
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n1", "PORT": "3"}.items():
        monkeypatch.setenv(name, value)
    assert "--nnodes 2 --node_rank 1 --master_addr n1 --master_port 3 " in echoed(script, "2", CONFIG)
    monkeypatch.setenv("MAX_RESTARTS", "4")
    again = (
        f"--nnodes 2 --rdzv_backend c10d --rdzv_id {CONFIG} --rdzv_endpoint n1:3 --nproc_per_node 2 --max_restarts 4"
    )
    assert again in echoed(script, "2", CONFIG)


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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, EXIT_CODE), (signal.SIGUSR1, EXIT_CODE), (signal.SIGINT, 130)]
)
def test_torchrun_ends_quietly_after_a_signal(number, code, monkeypatch):
    def stopped() -> None:
        raise SignalException("", number)

    monkeypatch.setattr(run, "main", stopped)
    monkeypatch.setattr(sys, "path", ["first", *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "internimage" / "torchrun.py"), run_name="__main__")
    assert end.value.code == code


def test_real_errors_of_torchrun_are_not_hidden(monkeypatch):
    monkeypatch.setattr(run, "main", lambda: 1 / 0)
    monkeypatch.setattr(sys, "path", ["first", *sys.path])
    with pytest.raises(ZeroDivisionError):
        runpy.run_path(str(ROOT / "internimage" / "torchrun.py"), run_name="__main__")


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_training_is_started_by_it(task):
    script, arguments = (
        echoed(f"{task}/dist_train.sh", "2", CONFIG).split()[0],
        echoed(f"{task}/dist_train.sh", "2", CONFIG),
    )
    assert (ROOT / script).samefile(ROOT / "internimage" / "torchrun.py") and f"{task}/train.py" in arguments
