"""Importing this registers everything that the configs here need; name it in `custom_imports`."""

import warnings

from .intern_image import CBInternImage, FlashInternImage, InternImage  # isort: skip - before mmseg is imported
from .mask2former import EncoderDecoderMask2Former, UnnormalizedDeformableAttention, UnnormalizedPixelDecoder

# mmseg warns of a call of its own, and of its default for ignored pixels, which the released configurations rely on.
warnings.filterwarnings("ignore", message="``build_loss`` would be deprecated soon")
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")

__all__ = [
    "CBInternImage",
    "EncoderDecoderMask2Former",
    "FlashInternImage",
    "InternImage",
    "UnnormalizedDeformableAttention",
    "UnnormalizedPixelDecoder",
]
