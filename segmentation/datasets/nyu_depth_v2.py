"""NYU Depth V2 (Silberman et al., ECCV 2012) with its 40 classes: the images, without depth."""

from mmseg.datasets import ADE20KDataset, BaseSegDataset
from mmseg.registry import DATASETS

__all__ = ["NYUDepthV2Dataset"]

# Spelled as in the original project.
_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture", "otherprop"),
)


@DATASETS.register_module()
class NYUDepthV2Dataset(BaseSegDataset):
    """Images and label maps `.png`; label 0 is ignored, 1 to 40 are the classes."""

    METAINFO = {"classes": _CLASSES, "palette": ADE20KDataset.METAINFO["palette"][: len(_CLASSES)]}

    def __init__(self, img_suffix: str = ".png", reduce_zero_label: bool = True, **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, reduce_zero_label=reduce_zero_label, **kwargs)
