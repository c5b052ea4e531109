"""Which backends of the operator this machine can test, and where each wants its tensors."""

from ops_dcnv3 import backends

_DEVICES = {"cpu": "cpu", "torch": "cpu", "cuda": "cuda", "triton": "cuda"}
_STATUS = backends.status()

BACKENDS = [name for name in _DEVICES if _STATUS[name] is None]


def device_of(backend: str) -> str:
    """The device that tensors must be on for a backend; `torch` runs on any and is tested on the CPU."""
    return _DEVICES[backend]
