"""Mapillary Vistas 1.2 (Neuhold et al., ICCV 2017) with the 19 classes of Cityscapes.

The released models are trained on Mapillary and tested on Cityscapes. The table is that of the original project.
"""

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset, CityscapesDataset, MapillaryDataset_v1
from mmseg.registry import DATASETS, TRANSFORMS

from .labels import IGNORE

__all__ = ["MapillaryDataset", "MapillaryToCityscapes"]

# Mapillary's other classes have the names of Cityscapes with capitals, or are ignored.
_CITYSCAPES_OF = {
    "Lane Marking - General": "road",
    "Manhole": "road",
    "Curb": "sidewalk",
    "Utility Pole": "pole",
    "Traffic Sign (Front)": "traffic sign",
    "Bicyclist": "rider",
    "Motorcyclist": "rider",
    "Other Rider": "rider",
    "On Rails": "train",
}


@DATASETS.register_module()
class MapillaryDataset(BaseSegDataset):
    """Images `.jpg` and label maps `.png` of Mapillary Vistas 1.2, under the class names of Cityscapes.

    Its pipelines need `MapillaryToCityscapes` after the label map is loaded.
    """

    METAINFO = CityscapesDataset.METAINFO


@TRANSFORMS.register_module()
class MapillaryToCityscapes(BaseTransform):
    """Replace Mapillary's labels in `gt_seg_map` by those of Cityscapes, or by 255 where it has no such class."""

    def __init__(self) -> None:
        cityscapes = CityscapesDataset.METAINFO["classes"]
        self.table = np.full(256, IGNORE, dtype=np.uint8)
        for label, name in enumerate(MapillaryDataset_v1.METAINFO["classes"]):
            name = _CITYSCAPES_OF.get(name, name.lower())
            if name in cityscapes:
                self.table[label] = cityscapes.index(name)

    def transform(self, results: dict) -> dict:
        """Return `results` with the new label map."""
        results["gt_seg_map"] = self.table[results["gt_seg_map"]]
        return results
