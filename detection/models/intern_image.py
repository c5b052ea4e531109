"""The backbones as mmdet wants them: registered, with released keys (`internimage.mm`)."""

from internimage.mm import CBInternImage, FlashInternImage, InternImage

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]
