"""If one of several processes ends early, all end, and the reason is said once (gloo, without a launcher)."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from internimage import peers
from internimage.errors import UserError, exit_on_user_error
from internimage.peers import Peers
from internimage.preemption import close_process_group

SIZE = 3


def run(folder: Path, *work: Callable[[], None]) -> tuple[list[int], str]:
    """Exit codes of processes that do `work[rank]` together (the last ranks the last work), and what they print."""
    children = []
    for rank in range(SIZE):
        children.append(os.fork())
        if children[-1] == 0:
            signal.alarm(15)  # so that a process that is not told ends with another code
            with open(folder / "printed", "a", buffering=1) as sys.stderr:
                os._exit(exit_code(lambda: together(folder, rank, work[min(rank, len(work) - 1)])))  # noqa: B023
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, (folder / "printed").read_text()


def together(folder: Path, rank: int, work: Callable[[], None]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    with Peers():
        work()
        close_process_group()


def exit_code(work: Callable[[], None]) -> int:
    try:
        exit_on_user_error(work)()
    except SystemExit as stopped:
        return stopped.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(peers, "_LAUNCHER", 0)


def train() -> None:
    while True:
        dist.all_reduce(torch.ones(1))


def wait_for_the_gpu() -> None:
    time.sleep(60)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_and_leave_a_worker() -> None:
    if os.fork() == 0:  # with gloo's connections, which only break when it ends
        time.sleep(20)
        os._exit(0)
    die()


def be_wrong() -> None:
    raise UserError("no such image")


def crash() -> None:
    raise IndexError("list index out of range")


def test_a_killed_process_ends_all_and_is_named_once(tmp_path):
    codes, printed = run(tmp_path, train, train, die)
    assert codes == [1, 1, -signal.SIGKILL]
    assert printed.count("error: ") == 1 and "process 2 of 3 (" in printed and "ended without a word" in printed


def test_the_first_process_too_is_missed(tmp_path):
    codes, printed = run(tmp_path, die, train)
    assert codes == [-signal.SIGKILL, 1, 1]
    assert printed.count("error: ") == 1 and "process 0 of 3 (" in printed and "ended without a word" in printed


@pytest.mark.parametrize("death", [die, die_and_leave_a_worker])
def test_processes_that_wait_for_a_gpu_end_after_a_while(death, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "_GRACE", 0.2)
    codes, printed = run(tmp_path, wait_for_the_gpu, wait_for_the_gpu, death)
    assert codes == [1, 1, -signal.SIGKILL]
    assert printed.count("error: ") == 1 and "process 2 of 3" in printed


def test_the_error_of_a_process_reaches_the_first_one_which_says_it_once(tmp_path):
    codes, printed = run(tmp_path, train, train, be_wrong)
    assert codes == [1, 1, 2]
    assert printed.count("no such image") == 1 and "process 2 of 3" in printed and "failed: no such image" in printed


def test_an_unforeseen_error_keeps_its_traceback(tmp_path):
    codes, printed = run(tmp_path, train, train, crash)
    assert codes == [1, 1, 1]
    assert printed.count("error: process") == 1 and "failed: IndexError('list index" in printed
    assert printed.count("Traceback (most recent call last)") == 1


def test_an_error_of_all_processes_is_said_once(tmp_path):
    codes, printed = run(tmp_path, be_wrong)
    assert codes == [2, 2, 2]
    assert printed == "error: no such image\n"


def test_processes_that_end_in_order_say_nothing(tmp_path):
    def stop() -> None:
        close_process_group()
        time.sleep(dist.is_initialized())
        sys.exit(75)

    assert run(tmp_path, lambda: None, stop, lambda: None)[1] == ""


def test_the_connections_of_the_first_process_leave_it_as_many_open_files_as_before(tmp_path):
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def compare() -> None:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before - 10 + SIZE - 1, most)

    resource.setrlimit(resource.RLIMIT_NOFILE, (before - 10, most))
    codes, _ = run(tmp_path, compare, lambda: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert codes == [0] * SIZE
