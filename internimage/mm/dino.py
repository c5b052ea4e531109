"""Where the released DINO detectors differ from those of mmdet 3.

DINO (Zhang et al., ICLR 2023) as in InternImage's original project; CBDINO is its version for `CBInternImage`.
"""

import warnings

import torch
from mmdet.models import DINO
from mmdet.models.dense_heads import DINOHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

__all__ = ["CBDINO", "CBDINOHead", "InternImageDINOHead"]

_EDGE = 1e-3

warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")  # of a call in mmdet


@MODELS.register_module()
class InternImageDINOHead(DINOHead):
    """`DINOHead` whose boxes start from references at least 0.001 from 0 and 1, as the decoder's do.

    mmdet 3 stops at 0.00001 in the head only, which moves the edges of boxes as large as the image by pixels.
    """

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits and boxes of every decoder layer, `(layers, N, queries, classes)` and `(..., 4)`."""
        return super().forward(hidden_states, [reference.clamp(_EDGE, 1 - _EDGE) for reference in references])


@MODELS.register_module()
class CBDINOHead(InternImageDINOHead):
    """Head of `CBDINO`: in training the batch holds the first backbone's images, then the second's.

    Args:
        cb_first_weight: weight of the first backbone's losses; the second's have 1.
        args, kwargs: as mmdet's `DINOHead`.
    """

    def __init__(self, *args, cb_first_weight: float = 0.5, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.cb_first_weight = cb_first_weight

    def loss_by_feat(self, *inputs, **kwargs) -> dict[str, Tensor]:
        """Losses of the two halves of the batch, each normalised by its own boxes. Arguments as in mmdet."""
        decoder, per_image, rest = inputs[:2], inputs[2:6], inputs[6:]  # the decoder's have the layers before the batch
        half = len(per_image[-1]) // 2
        losses = {}
        for index, weight in enumerate((self.cb_first_weight, 1.0)):
            part = slice(index * half, (index + 1) * half)
            halves = [item[:, part] for item in decoder] + [item[part] for item in per_image]
            own = super().loss_by_feat(*halves, *rest, **kwargs)
            losses |= {f"{name}_cb{index}": value * weight for name, value in own.items()}
        return losses


@MODELS.register_module()
class CBDINO(DINO):
    """DINO on `CBInternImage`: trained on the feature maps of both backbones, used with those of the second."""

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the second backbone; in training those of the first before them along the batch."""
        first, second = self.backbone(batch_inputs)
        maps = [torch.cat(pair) for pair in zip(first, second)] if self.training else second
        return self.neck(tuple(maps))

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a batch `(N, 3, H, W)`; the transformer sees 2 N images."""
        head_inputs = self.forward_transformer(self.extract_feat(batch_inputs), 2 * list(batch_data_samples))
        return self.bbox_head.loss(**head_inputs, batch_data_samples=2 * list(batch_data_samples))
