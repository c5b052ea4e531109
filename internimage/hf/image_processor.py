"""The image processor of InternImage in transformers: the original project's evaluation transform."""

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict

from .configuration import AUTO_MAP, copy_nothing

__all__ = ["InternImageImageProcessor"]


class InternImageImageProcessor(PilBackend):
    """Resize the shorter side (Pillow's bicubic filter), crop the centre, normalise by ImageNet's mean and deviation.

    `size={"shortest_edge": 384}, crop_size=384` for a model of 384 x 384. Makes `pixel_values` `(N, 3, H, W)`, float32.
    """

    register_for_auto_class = copy_nothing
    resample = PILImageResampling.BICUBIC
    image_mean, image_std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    size, crop_size, default_to_square = {"shortest_edge": 224}, {"height": 224, "width": 224}, False
    do_resize = do_center_crop = do_rescale = do_normalize = do_convert_rgb = True

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """Crop `(C, H, W)` as torchvision does: transformers rounds the margin down, which can be one pixel less."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **kwargs)  # pads
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def to_dict(self) -> dict:
        return {**super().to_dict(), "auto_map": {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}}
