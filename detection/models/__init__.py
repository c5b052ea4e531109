"""Importing this registers everything that the configs here need; name it in `custom_imports`."""

from .intern_image import CBInternImage, FlashInternImage, InternImage  # isort: skip - before mmdet is imported
from .dino import CBDINO, CBDINOHead, InternImageDINOHead

__all__ = ["CBDINO", "CBDINOHead", "CBInternImage", "FlashInternImage", "InternImage", "InternImageDINOHead"]
