"""Segmentors of mmseg as one module from images to label maps, for exporters.

UperNet (Xiao et al., 2018), SegFormer's head (Xie et al., 2021) and Mask2Former (Cheng et al., 2022).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import exportable_copy

__all__ = ["Segmentor"]


class Segmentor(nn.Module):
    """A segmentor of mmseg, tested on whole images.

    `forward` takes normalised images `(N, 3, H, W)` and returns labels `(N, H, W)` int64 and their scores, the
    probability of the label's class (with Mask2Former its class map).
    """

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = exportable_copy(segmentor)
        self.has_queries = hasattr(segmentor.decode_head, "transformer_decoder")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = images.shape[2:]
        if self.has_queries:
            maps = self.segmentor.encode_decode(images, [{"img_shape": size}])
        else:
            head = self.segmentor.decode_head
            maps = head(self.segmentor.extract_feat(images))
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=head.align_corners).softmax(1)
        scores, labels = maps.max(1)
        return labels, scores
