"""Importing this registers everything that the configs here need; name it in `custom_imports`."""

import warnings

from .intern_image import CBInternImage, FlashInternImage, InternImage  # isort: skip - before mmdet is imported
from .dino import CBDINO, CBDINOHead, InternImageDINOHead

# Of a call in mmdet.
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")

__all__ = ["CBDINO", "CBDINOHead", "CBInternImage", "FlashInternImage", "InternImage", "InternImageDINOHead"]
