"""Where the released Mask2Former segmentors differ from those of mmseg 1.

Mask2Former (Cheng et al., CVPR 2022) as in InternImage's and FlashInternImage's original projects.
"""

import warnings

import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmdet.registry import MODELS as MMDET_MODELS
from mmseg.models import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor

__all__ = ["EncoderDecoderMask2Former", "UnnormalizedDeformableAttention", "UnnormalizedPixelDecoder"]

# mmseg warns of a call of its own, and of its default for ignored pixels, which the released configurations rely on.
warnings.filterwarnings("ignore", message="``build_loss`` would be deprecated soon")
warnings.filterwarnings("ignore", message="Default ``avg_non_ignore`` is False")


@MODELS.register_module()
class EncoderDecoderMask2Former(EncoderDecoder):
    """`EncoderDecoder` with a Mask2Former head, whose maps are put together before they are enlarged.

    A class's map is the sum over the queries of class probability times mask probability. The released models were
    evaluated with these sums at stride 4, enlarged bilinearly; mmseg enlarges the masks' logits first.
    """

    def _forward(self, inputs: Tensor, data_samples: list | None = None) -> Tensor:
        """Image `(N, 3, H, W)` to class maps `(N, classes, ceil(H / 4), ceil(W / 4))`."""
        class_logits, mask_logits = self.decode_head(self.extract_feat(inputs), data_samples)
        classes = class_logits[-1].softmax(-1)[..., :-1]  # the last one is "no object"
        return torch.einsum("nqc,nqhw->nchw", classes, mask_logits[-1].sigmoid())

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Image or crop `(N, 3, H, W)` to class maps `(N, classes, H, W)`; the metas are not needed."""
        return resize(self._forward(inputs), size=inputs.shape[-2:], mode="bilinear", align_corners=self.align_corners)


class UnnormalizedDeformableAttention(MultiScaleDeformableAttention):
    """Deformable attention whose weights are used as they are, without softmax: what DCNv4 does, for attention."""

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Attend from `query` `(N, queries, C)` to `value` `(N, keys, C)`; return `(N, queries, C)`.

        Arguments as in mmcv, but `reference_points` must be `(N, queries, levels, 2)`.
        """
        identity = query if identity is None else identity
        value = self.value_proj(query if value is None else value)
        query = query if query_pos is None else query + query_pos
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        shape = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).view(shape)
        sizes_xy = spatial_shapes.flip(-1)[:, None]  # (levels, 1, 2)
        places = reference_points[:, :, None, :, None] + self.sampling_offsets(query).view(*shape, 2) / sizes_xy
        value = value.unflatten(-1, (self.num_heads, -1))
        if value.is_cuda:
            attended = MultiScaleDeformableAttnFunction.apply(
                value, spatial_shapes, level_start_index, places, weights, self.im2col_step
            )
        else:
            attended = multi_scale_deformable_attn_pytorch(value, spatial_shapes, places, weights)
        return self.dropout(self.output_proj(attended)) + identity


@MMDET_MODELS.register_module()
class UnnormalizedPixelDecoder(MSDeformAttnPixelDecoder):
    """Mask2Former's pixel decoder with `UnnormalizedDeformableAttention` (the `nsmx` recipe of FlashInternImage)."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.encoder.layers:
            layer.self_attn.__class__ = UnnormalizedDeformableAttention  # the same parameters and settings
