"""End all processes of a run, and say why, when one of them ends early.

torch.distributed does not: gloo raises an error, without the reason, in the next collective; with NCCL the other
processes may wait until the timeout of the process group. srun ends a job at the first exit code that is not 0, but
torchrun only ends the processes of its own machine.
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress

import torch.distributed as dist

from .errors import UserError

__all__ = ["Peers", "has_peers"]

_GRACE = 20  # seconds for the main thread to end by itself; torchrun kills after 30
_CONNECT = 30  # seconds to meet at the start
_NEWS = 10  # seconds in which the reason of a broken connection must be known
_LAUNCHER = 3  # seconds for the launcher to notice the process that ended first, and report that one

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_sockets() -> None:
    for held in list(_sockets):
        held.close()


if hasattr(os, "register_at_fork"):  # a worker process would keep the connection of its dead parent open
    os.register_at_fork(after_in_child=_close_sockets)


def has_peers() -> bool:
    """Whether this process is one of several of a torch.distributed group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _connection_failed(error: BaseException | None) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Peers:
    """Context manager around what several processes do together, entered and left by all of them.

    Each process holds a connection to the first one (a port of `MASTER_ADDR`), which the operating system closes when
    the process ends, and over which it sends its last words. If one ends without leaving the context in order, the
    first process prints which and why, and all end: with exit code 1, within `_GRACE` seconds even if they wait for a
    GPU. A process that is stopped, or a machine that disappears from the network, closes no connection.
    """

    def __init__(self) -> None:
        self._known, self._leaving = threading.Event(), threading.Event()
        self._others: dict[socket.socket, bytes] = {}  # connections, with what came

    def __enter__(self) -> "Peers":
        if not has_peers():
            return self
        self.rank, size = dist.get_rank(), dist.get_world_size()
        name = f"process {self.rank} of {size} ({socket.gethostname()}, PID {os.getpid()})\n"
        try:
            if self.rank == 0:
                self._await(size - 1, name)
            else:
                self._connect(name)
        except OSError as error:
            print(f"{name.strip()} cannot see whether the others live: {error}", file=sys.stderr)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _await(self, count: int, name: str) -> None:
        with suppress(ImportError, OSError, ValueError):  # Windows has none
            import resource

            files, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # often 1024, too few for 1000 connections
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(files + count, most), most))
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=count) as server:
            token = secrets.token_bytes(8)
            dist.broadcast_object_list([server.getsockname()[1], token], src=0)
            server.settimeout(_CONNECT)
            while len(self._others) < count:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT)
                if connection.recv(len(token), socket.MSG_WAITALL) == token:  # no stranger
                    connection.sendall(name.encode())
                    self._keep(connection)

    def _connect(self, name: str) -> None:
        offer = [None, None]
        dist.broadcast_object_list(offer, src=0)
        port, token = offer
        connection = socket.create_connection((os.environ.get("MASTER_ADDR", "localhost"), port), timeout=_CONNECT)
        connection.sendall(token + name.encode())
        self._keep(connection)

    def _keep(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        self._others[connection] = b""
        _sockets.add(connection)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._others:
                selector.register(connection, selectors.EVENT_READ)
            while not self._leaving.is_set():
                for key, _ in selector.select(1):
                    if not self._read(key.fileobj):
                        selector.unregister(key.fileobj)
                        if reason := self._last_words(self._others[key.fileobj]):
                            return self._end(reason)

    def _read(self, connection: socket.socket) -> bool:
        """Collect what came; whether the connection is still open."""
        try:
            content = connection.recv(65536)
        except OSError:
            content = b""
        self._others[connection] += content
        return bool(content)

    def _last_words(self, content: bytes) -> str:
        """Why all must end, given what a process sent; nothing if it left in order."""
        who, met, text = content.decode(errors="replace").partition("\n")
        # The first process has waited for others too long, and closed; or this one has, at its end.
        if not met or self._leaving.is_set():
            return ""
        if not text:
            return f"{who} ended without a word: it was killed (for lack of memory? see dmesg) or crashed"
        # The first process may be about to end for the same reason, and then prints it itself.
        if text == "bye" or (self.rank == 0 and self._leaving.wait(1)):
            return ""
        return text if self.rank else f"{who} failed: {text}"

    def _end(self, reason: str) -> None:
        self._send(reason)
        first_is_lost = reason.startswith("process 0 of")
        if self.rank == 0 or (self.rank == 1 and first_is_lost):
            print(f"error: {reason}; all processes end", file=sys.stderr, flush=True)
        self._known.set()
        if not self._leaving.wait(_GRACE):
            os._exit(1)

    def _send(self, text: str) -> None:
        for connection in list(self._others):
            try:
                connection.sendall(text.encode())
                connection.shutdown(socket.SHUT_WR)
            except OSError:  # it has ended too
                continue

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if not self._others:
            return
        if _connection_failed(error) and self._known.wait(_NEWS):
            self._leaving.set()
            time.sleep(_LAUNCHER)
            raise SystemExit(1) from None
        in_order = error is None or isinstance(error, SystemExit)
        if in_order or self.rank == 0:
            self._leaving.set()
        words = str(error) if isinstance(error, UserError) else repr(error).partition("\n")[0]
        self._send("bye" if in_order else words)
        if isinstance(error, UserError) and self.rank and self._known.wait(_NEWS):
            self._leaving.set()
            raise SystemExit(2) from None  # the first process has printed it
        self._leaving.set()
        _close_sockets()
