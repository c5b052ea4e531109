"""InternImage (Wang et al., CVPR 2023): the backbone, its released variants and what all tasks share."""

import importlib

from . import timm as _timm  # noqa: F401 - registers the names with timm
from .backbone import InternImage
from .errors import CheckpointError, UserError
from .flash import FlashInternImage
from .flops import flops
from .meta_former import InternImageMetaFormer
from .variants import create_model, list_models

__version__ = "0.2.0"

__all__ = [
    "CheckpointError",
    "FlashInternImage",
    "InternImage",
    "InternImageMetaFormer",
    "UserError",
    "create_model",
    "flops",
    "list_models",
    "load",
    "visualize",
]


def __getattr__(name: str) -> object:
    # `load` stands above the tasks, which import this package, and drawing needs matplotlib: imported at first use.
    if name in (modules := {"load": ".loading", "visualize": ".visualization"}):
        return getattr(importlib.import_module(modules[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
