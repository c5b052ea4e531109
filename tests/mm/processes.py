"""Two processes of one training, forked from the test: starting them anew would take longer than the training."""

import os
from collections.abc import Callable

from ports import free_port

__all__ = ["in_two_processes"]


def in_two_processes(work: Callable[[], int]) -> list[int]:
    """The exit codes of two processes of one training."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
                code = work()
            finally:
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
