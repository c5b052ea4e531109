"""InternImage (Wang et al., CVPR 2023): the backbone, its released variants and what all tasks share."""

from . import timm as _timm  # noqa: F401 - registers the names with timm
from .backbone import InternImage
from .errors import CheckpointError, UserError
from .flash import FlashInternImage
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
    "list_models",
]
