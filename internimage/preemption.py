"""Stopping a training when it is asked to, so that it can be saved and go on later.

Slurm sends a signal some time before a job's time ends (`--signal=USR1@120`), and SIGTERM when a job must make room. A
training asks `StopRequest.agreed` after every update, saves if the answer is yes, and exits with `EXIT_CODE`, on which
`slurm_train.sh` puts the job into the queue again.
"""

import signal
import sys
import time
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

__all__ = ["EXIT_CODE", "StopRequest", "ignore_in_worker", "leave"]

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later

_OTHERS_NEED = 5  # seconds to end
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Whether this run has been asked to stop by SIGTERM or SIGUSR1, which no longer end the process.

    A context manager, for the main thread. Enter it before workers are forked, and give each of them
    `ignore_in_worker`.
    """

    def __init__(self) -> None:
        self.signal: str | None = None  # that this process got
        self._before: dict[int, object] = {}
        self._group: dist.ProcessGroup | None = None
        self._vote: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._count()  # a process must not leave while the last vote is on its way
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether to stop now: the same answer in all processes, though only some of them may get the signal.

        All must call it equally often. Among several processes the answer is that to the vote of the call before: it
        was counted during the step in between, so nobody waits, and no GPU is made to wait (the votes are on the CPU).
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self.signal is not None
        self._group = self._group or dist.new_group(backend="gloo")
        agreed = self._count()
        vote = torch.tensor([self.signal is not None], dtype=torch.uint8)
        self._vote = vote, dist.all_reduce(vote, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def _count(self) -> bool:
        if self._vote is None:
            return False
        vote, work = self._vote
        work.wait()
        return bool(vote)


def leave() -> NoReturn:
    """End a run that was stopped and saved: the first process last, and it alone with `EXIT_CODE`.

    srun kills all processes at the first exit code that is not 0, and then returns the code of that kill.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        first = dist.get_rank() == 0
        dist.barrier()  # gloo may abort a process whose peer has gone first
        dist.destroy_process_group()
        if not first:
            sys.exit(0)
        time.sleep(_OTHERS_NEED)
    sys.exit(EXIT_CODE)


def ignore_in_worker(_: int) -> None:
    """A DataLoader's `worker_init_fn`: leaves the signals, which Slurm sends to every process, to the main process.

    A worker that died of them would end the training at any place. `Process.terminate` has no effect on such a worker:
    end it through its queue, as DataLoader does, or by `Process.kill`.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
