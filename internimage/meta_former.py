"""InternImage with location and date: the iNaturalist 2018 model of the original project.

Two small encoders embed the metadata; their classifier's logits are added to the image's. Names are the released keys.
"""

import torch
from torch import Tensor, nn

from .backbone import InternImage

__all__ = ["InternImageMetaFormer", "logits_of_images"]

_TEMPORAL, _SPATIAL, _META_DIM = 4, 3, 64


class MetaEncoder(nn.Module):
    """Residual block of two linear-ReLU-LayerNorm layers on `(N, C)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(channels, channels)
        self.norm_fn1 = nn.LayerNorm(channels)
        self.w2 = nn.Linear(channels, channels)
        self.norm_fn2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_fn1(self.w1(x).relu())
        return x + self.norm_fn2(self.w2(y).relu())


def _meta_head(in_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, _META_DIM), nn.ReLU(), nn.LayerNorm(_META_DIM), MetaEncoder(_META_DIM))


class InternImageMetaFormer(InternImage):
    """`InternImage` with date and location as additional inputs. Arguments as `InternImage`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.features_only:
            raise ValueError("InternImageMetaFormer is a classifier; use InternImage for feature maps")
        self.meta_head_1 = _meta_head(_TEMPORAL)
        self.meta_head_2 = _meta_head(_SPATIAL)
        self.meta_norm = nn.LayerNorm(2 * _META_DIM, eps=1e-6)
        self.meta_head = self._new_classifier(2 * _META_DIM)
        for module in (self.meta_head_1, self.meta_head_2):
            module.apply(self._init_weights)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        if hasattr(self, "meta_head"):
            self.meta_head = self._new_classifier(2 * _META_DIM)

    def forward(
        self, x: Tensor | tuple[Tensor, Tensor, Tensor], temporal: Tensor | None = None, spatial: Tensor | None = None
    ) -> Tensor:
        """Images `(N, in_chans, H, W)`, temporal `(N, 4)`, spatial `(N, 3)` (or a tuple of the three) to logits.

        temporal = [sin(2 pi month / 12), cos(2 pi month / 12), 0, 0]; spatial = the unit vector of latitude and
        longitude; zeros where unknown. Without a classifier the result is that of the images.
        """
        if isinstance(x, (tuple, list)):
            x, temporal, spatial = x
        if self.num_classes == 0:
            return super().forward(x)
        if temporal is None or spatial is None:
            raise ValueError(
                "InternImageMetaFormer needs (images, temporal (N, 4), spatial (N, 3)); pass zeros if unknown"
            )
        meta = torch.cat([self.meta_head_1(temporal), self.meta_head_2(spatial)], dim=-1)
        return super().forward(x) + self.meta_head(self.meta_norm(meta))


def logits_of_images(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of any classifier for images alone: zeros are the date and location of `InternImageMetaFormer`."""
    if isinstance(model, InternImageMetaFormer):
        return model(images, images.new_zeros(len(images), _TEMPORAL), images.new_zeros(len(images), _SPATIAL))
    return model(images)
