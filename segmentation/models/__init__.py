"""The models of segmentation; importing this, or `internimage.mm` alone, registers them with mmseg."""

from internimage.mm import CBInternImage, FlashInternImage, InternImage
from internimage.mm.mask2former import (
    EncoderDecoderMask2Former,
    UnnormalizedDeformableAttention,
    UnnormalizedPixelDecoder,
)

__all__ = [
    "CBInternImage",
    "EncoderDecoderMask2Former",
    "FlashInternImage",
    "InternImage",
    "UnnormalizedDeformableAttention",
    "UnnormalizedPixelDecoder",
]
