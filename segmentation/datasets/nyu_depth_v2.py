"""NYU Depth V2 (Silberman et al., ECCV 2012) with its 40 classes: the images, without depth.

Class names as the original project spells them.
"""

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

__all__ = ["NYUDepthV2Dataset"]


@DATASETS.register_module()
class NYUDepthV2Dataset(BaseSegDataset):
    """Images and label maps `.png`; label 0 is ignored, 1 to 40 are the classes."""

    METAINFO = {
        "classes": (
            "wall",
            "floor",
            "cabinet",
            "bed",
            "chair",
            "sofa",
            "table",
            "door",
            "window",
            "bookshelf",
            "picture",
            "counter",
            "blinds",
            "desk",
            "shelves",
            "curtain",
            "dresser",
            "pillow",
            "mirror",
            "floor mat",
            "clothes",
            "ceiling",
            "books",
            "refridgerator",
            "television",
            "paper",
            "towel",
            "shower curtain",
            "box",
            "whiteboard",
            "person",
            "night stand",
            "toilet",
            "sink",
            "lamp",
            "bathtub",
            "bag",
            "otherstructure",
            "otherfurniture",
            "otherprop",
        ),
        "palette": [
            [120, 120, 120],
            [180, 120, 120],
            [6, 230, 230],
            [80, 50, 50],
            [4, 200, 3],
            [120, 120, 80],
            [140, 140, 140],
            [204, 5, 255],
            [230, 230, 230],
            [4, 250, 7],
            [224, 5, 255],
            [235, 255, 7],
            [150, 5, 61],
            [120, 120, 70],
            [8, 255, 51],
            [255, 6, 82],
            [143, 255, 140],
            [204, 255, 4],
            [255, 51, 7],
            [204, 70, 3],
            [0, 102, 200],
            [61, 230, 250],
            [255, 6, 51],
            [11, 102, 255],
            [255, 7, 71],
            [255, 9, 224],
            [9, 7, 230],
            [220, 220, 220],
            [255, 9, 92],
            [112, 9, 255],
            [8, 255, 214],
            [7, 255, 224],
            [255, 184, 6],
            [10, 255, 71],
            [255, 41, 10],
            [7, 255, 255],
            [224, 255, 8],
            [102, 8, 255],
            [255, 61, 6],
            [255, 194, 7],
        ],
    }

    def __init__(
        self,
        img_suffix: str = ".png",
        seg_map_suffix: str = ".png",
        reduce_zero_label: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs
        )
