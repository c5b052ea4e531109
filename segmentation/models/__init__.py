"""Importing this registers everything that the configs here need; name it in `custom_imports`."""

from .intern_image import CBInternImage, FlashInternImage, InternImage  # isort: skip - before mmseg is imported
from .mask2former import EncoderDecoderMask2Former, UnnormalizedDeformableAttention, UnnormalizedPixelDecoder

__all__ = [
    "CBInternImage",
    "EncoderDecoderMask2Former",
    "FlashInternImage",
    "InternImage",
    "UnnormalizedDeformableAttention",
    "UnnormalizedPixelDecoder",
]
