"""Reading label maps, with a clear error for labels that a data set does not have.

On a GPU a label out of range fails in the loss without its file name, and mmseg stores labels in 8 bits, so that 256
becomes class 0.
"""

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from internimage.errors import UserError

__all__ = ["IGNORE", "LoadLabelMap"]

IGNORE = 255


@TRANSFORMS.register_module()
class LoadLabelMap(LoadAnnotations):
    """mmseg's `LoadAnnotations`, checking what it reads.

    Args:
        num_classes: labels must be below, or 255 (ignored); after `reduce_zero_label`, which makes 0 ignored and 1
            the first class, and before another transform maps them.
        kwargs: as mmseg's.
    """

    def __init__(self, num_classes: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def _load_seg_map(self, results: dict) -> None:
        """Add `gt_seg_map` `(H, W)`, uint8, unless there is no label map, as in mmseg's inference functions.

        Raises:
            UserError: not a readable image, not one integer per pixel, not the image's size, or a label out of range.
        """
        if "seg_map_path" not in results:
            return
        path = results["seg_map_path"]
        content = fileio.get(path, backend_args=self.backend_args)
        try:
            labels = mmcv.imfrombytes(content, flag="unchanged", backend=self.imdecode_backend)
        except Exception as error:  # Pillow raises many kinds
            raise UserError(f"{path} is not a readable label map ({error}); replace it or leave it out") from error
        if labels.ndim == 3 and labels.shape[2] == 1:
            labels = labels[..., 0]
        if labels.ndim != 2 or labels.dtype.kind == "f":
            what = f"{labels.shape[-1]} channels" if labels.ndim != 2 else "floating-point numbers"
            raise UserError(
                f"{path} has {what}; a label map has one channel of class numbers: save it as an 8-bit grey or palette "
                "PNG"
            )
        expected = tuple(results.get("ori_shape", labels.shape))
        if labels.shape != expected:
            raise UserError(
                f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels, but its image is {expected[1]}x{expected[0]}: "
                "a label map has a label for every pixel of the image"
            )
        reduce = results["reduce_zero_label"]
        labels = labels.astype(np.int64)
        if reduce:
            labels = np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1)
        if (wrong := (labels != IGNORE) & ((labels < 0) | (labels >= self.num_classes))).any():
            first, last = (1, self.num_classes) if reduce else (0, self.num_classes - 1)
            raise UserError(
                f"{path} has label {labels[wrong].max() + reduce} in {wrong.sum()} pixels; labels are {first} to "
                f"{last}{', 0' if reduce else ''} or {IGNORE} (ignored): correct the file or the number of classes"
            )
        gt_seg_map = labels.astype(np.uint8)
        for old, new in (results.get("label_map") or {}).items():
            gt_seg_map[labels == old] = new
        results["gt_seg_map"] = gt_seg_map
        results["seg_fields"].append("gt_seg_map")
