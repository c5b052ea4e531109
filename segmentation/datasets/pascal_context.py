"""Pascal Context (Mottaghi et al., CVPR 2014) with its 59 classes."""

from mmseg.datasets import BaseSegDataset, PascalContextDataset59
from mmseg.registry import DATASETS

__all__ = ["LazyPascalContextDataset59"]


@DATASETS.register_module()
class LazyPascalContextDataset59(BaseSegDataset):
    """mmseg's `PascalContextDataset59`, which names its classes without its files too, as drawing an image needs."""

    METAINFO = PascalContextDataset59.METAINFO

    def __init__(
        self, img_suffix: str = ".jpg", seg_map_suffix: str = ".png", reduce_zero_label: bool = True, **kwargs
    ) -> None:
        super().__init__(
            img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label, **kwargs
        )
