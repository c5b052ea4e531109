"""InternImage in OpenMMLab: importing this package registers it (in a configuration, name it in `custom_imports`).

It must be imported before mmdet, mmseg or any other package that imports `mmcv.ops`, unless the full mmcv is installed.
"""

from .registration import CBInternImage, FlashInternImage, InternImage, setup

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]

setup()
