"""Pascal Context (Mottaghi et al., CVPR 2014) with its 59 classes."""

from mmseg.datasets import BaseSegDataset, PascalContextDataset59
from mmseg.registry import DATASETS

__all__ = ["LazyPascalContextDataset59"]


@DATASETS.register_module()
class LazyPascalContextDataset59(BaseSegDataset):
    """mmseg's `PascalContextDataset59`, but it also gives its class names when its files are missing."""

    METAINFO = PascalContextDataset59.METAINFO

    def __init__(self, reduce_zero_label: bool = True, **kwargs) -> None:
        super().__init__(reduce_zero_label=reduce_zero_label, **kwargs)
