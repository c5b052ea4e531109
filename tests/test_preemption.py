"""Asking a run to stop, and keeping a second run out of its folder."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from internimage.errors import UserError
from internimage.preemption import StopRequest
from internimage.runlock import lock_run

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_becomes_a_request_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def vote(rank: int, store: Path, answers) -> None:
    """Six steps of one of two processes; the second alone gets the signal, in its third step."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with StopRequest() as stop:
        for step in range(6):
            if (rank, step) == (1, 2):
                os.kill(os.getpid(), signal.SIGUSR1)
            answers[6 * rank + step] = stop.agreed()
    dist.barrier()
    dist.destroy_process_group()


def test_all_processes_stop_at_the_same_step_though_one_got_the_signal(tmp_path):
    answers = FORK.Array("b", 12)
    processes = [FORK.Process(target=vote, args=(rank, tmp_path / "store", answers), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert list(answers) == 2 * [False, False, False, True, True, True]


def hold(folder: Path, connection) -> None:
    lock_run(folder)
    connection.send("locked")
    connection.recv()


def test_a_folder_belongs_to_one_run_until_its_process_is_dead(tmp_path):
    here, there = FORK.Pipe()
    owner = FORK.Process(target=hold, args=(tmp_path, there), daemon=True)
    owner.start()
    here.recv()
    with pytest.raises(UserError, match=rf"another run .* process {owner.pid} on \S+, started \d{{4}}-"):
        lock_run(tmp_path)
    owner.kill()
    owner.join()
    lock_run(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / "run.lock").read_text()
