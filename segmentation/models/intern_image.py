"""The backbones as mmseg wants them: registered, with released keys (`internimage.integrations.mm`)."""

from internimage.integrations.mm import CBInternImage, FlashInternImage, InternImage, setup

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]

setup()
