"""Data sets and loading steps that mmseg does not have.

Importing this registers them; the configurations name it in `custom_imports`. `own_data.py` is also a script that
writes a configuration for your own data.
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
