"""Data sets and loading steps that mmseg lacks or has otherwise.

Importing this registers them; the configurations name it in `custom_imports`. `own_data.py` is a script besides: it
writes a configuration for label maps of your own.
"""

import internimage.mm  # noqa: F401 - before mmseg is imported

from .labels import LoadLabelMap
from .mapillary import MapillaryDataset, MapillaryToCityscapes
from .nyu_depth_v2 import NYUDepthV2Dataset
from .own_data import OwnDataset
from .pascal_context import LazyPascalContextDataset59

__all__ = [
    "LazyPascalContextDataset59",
    "LoadLabelMap",
    "MapillaryDataset",
    "MapillaryToCityscapes",
    "NYUDepthV2Dataset",
    "OwnDataset",
]
