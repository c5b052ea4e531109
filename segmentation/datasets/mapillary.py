"""Mapillary Vistas 1.2 (Neuhold et al., ICCV 2017) with the 19 classes of Cityscapes.

The released models learn from Mapillary what Cityscapes is tested on. The table is that of the original project.
"""

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset, CityscapesDataset, MapillaryDataset_v1
from mmseg.registry import DATASETS, TRANSFORMS

from .labels import IGNORE

__all__ = ["MapillaryDataset", "MapillaryToCityscapes"]

# Other classes of Mapillary are ignored.
_CITYSCAPES_OF = {
    "Road": "road",
    "Lane Marking - General": "road",
    "Manhole": "road",
    "Curb": "sidewalk",
    "Sidewalk": "sidewalk",
    "Building": "building",
    "Wall": "wall",
    "Fence": "fence",
    "Pole": "pole",
    "Utility Pole": "pole",
    "Traffic Light": "traffic light",
    "Traffic Sign (Front)": "traffic sign",
    "Vegetation": "vegetation",
    "Terrain": "terrain",
    "Sky": "sky",
    "Person": "person",
    "Bicyclist": "rider",
    "Motorcyclist": "rider",
    "Other Rider": "rider",
    "Car": "car",
    "Truck": "truck",
    "Bus": "bus",
    "On Rails": "train",
    "Motorcycle": "motorcycle",
    "Bicycle": "bicycle",
}


@DATASETS.register_module()
class MapillaryDataset(BaseSegDataset):
    """Images `.jpg` and label maps `.png` of Mapillary Vistas 1.2, under the class names of Cityscapes.

    Its pipelines need `MapillaryToCityscapes` after the label map is loaded.
    """

    METAINFO = CityscapesDataset.METAINFO

    def __init__(self, img_suffix: str = ".jpg", seg_map_suffix: str = ".png", **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)


@TRANSFORMS.register_module()
class MapillaryToCityscapes(BaseTransform):
    """Replace Mapillary's labels in `gt_seg_map` by those of Cityscapes, or by 255 where it has no such class."""

    def __init__(self) -> None:
        cityscapes = CityscapesDataset.METAINFO["classes"]
        self.table = np.full(256, IGNORE, dtype=np.uint8)
        for label, name in enumerate(MapillaryDataset_v1.METAINFO["classes"]):
            if name in _CITYSCAPES_OF:
                self.table[label] = cityscapes.index(_CITYSCAPES_OF[name])

    def transform(self, results: dict) -> dict:
        """Return `results` with the new label map."""
        results["gt_seg_map"] = self.table[results["gt_seg_map"]]
        return results
