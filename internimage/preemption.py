"""Stop a training on a signal, so that it can be saved and resumed.

Slurm sends a signal before the time limit of a job (`--signal=USR1@120`), and SIGTERM when it preempts it. A training
calls `StopRequest.agreed` after every update; if the result is true it saves and exits with `EXIT_CODE`, for which
`slurm_train.sh` requeues the job.
"""

import signal
import sys
import time
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from .peers import has_peers

__all__ = ["EXIT_CODE", "StopRequest", "close_process_group", "ignore_in_worker", "leave"]

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later

_OTHERS_NEED = 5  # seconds to exit
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopRequest:
    """Context manager that turns SIGTERM and SIGUSR1 into a request to stop, instead of ending the process.

    Enter it in the main thread before workers are forked, and give the workers `ignore_in_worker`.
    """

    def __init__(self) -> None:
        self.signal: str | None = None  # received by this process
        self._before: dict[int, object] = {}
        self._group: dist.ProcessGroup | None = None
        self._vote: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._count()  # a process must not exit while its last vote is in transit
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether to stop now. The result is the same in all processes, even if only some received the signal.

        All processes must call this method equally often. With several processes it returns the result of the previous
        vote, which was counted during the step in between: no process and no GPU waits.
        """
        if not has_peers():
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


def close_process_group() -> None:
    """Destroy the process group, if any, in all processes together: gloo may abort a process if a peer exits first."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def leave() -> NoReturn:
    """Exit after a run was stopped and saved: rank 0 last, with `EXIT_CODE`, the others with 0.

    At the first other code srun kills all processes and returns the code of the kill.
    """
    if has_peers():
        first = dist.get_rank() == 0
        close_process_group()
        if not first:
            sys.exit(0)
        time.sleep(_OTHERS_NEED)
    sys.exit(EXIT_CODE)


def ignore_in_worker(_: int) -> None:
    """`worker_init_fn` of a DataLoader: ignore the signals, which Slurm sends to every process.

    `Process.terminate` has no effect on such a worker: end it through its queue, as DataLoader does, or by
    `Process.kill`.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
