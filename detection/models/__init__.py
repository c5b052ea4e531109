"""The models of detection; importing this, or `internimage.mm` alone, registers them with mmdet."""

from internimage.mm import CBInternImage, FlashInternImage, InternImage
from internimage.mm.dino import CBDINO, CBDINOHead, InternImageDINOHead

__all__ = ["CBDINO", "CBDINOHead", "CBInternImage", "FlashInternImage", "InternImage", "InternImageDINOHead"]
