"""Ports for process groups."""

import random
import socket

__all__ = ["free_port"]


def free_port() -> str:
    """A port that nobody listens on, below those that systems give to clients: none of these takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return str(port)
