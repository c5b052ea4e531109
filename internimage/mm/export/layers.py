"""Replacements for layers of mmdet and mmseg that cannot be exported with free sizes or in half types.

Deformable attention (Zhu et al., 2021) by GridSample, Mask2Former's pixel decoder (Cheng et al., 2022) with sizes
kept as numbers, adaptive average pooling as two matrix products, and positional encodings of the weights' type.
"""

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import MSDeformAttnPixelDecoder, SinePositionalEncoding
from torch import Tensor, nn

from internimage.export.cores import shared_copy

__all__ = ["Shapes", "WeightsType", "exportable_copy"]

Shapes = list[tuple[int, int]]


class WeightsType(nn.Module):
    """Casts to the type of the model's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.like.dtype)


class DeformableAttention(nn.Module):
    """`MultiScaleDeformableAttention` with `spatial_shapes` as a list; half weights still sample in float32."""

    def __init__(self, layer: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.layer = layer
        # FlashInternImage's attention (internimage.mm.mask2former) has weights without softmax.
        self.softmax = type(layer) is MultiScaleDeformableAttention

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Shapes = (),
        **_: object,
    ) -> Tensor:
        """Attend from `(N, queries, C)` to `(N, keys, C)`; references `(N, queries, levels, 2 or 4)` in 0 to 1."""
        layer = self.layer
        identity = query if identity is None else identity
        value = layer.value_proj(query if value is None else value)
        query = query if query_pos is None else query + query_pos
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        batch, queries = query.shape[:2]
        heads, levels, points = layer.num_heads, layer.num_levels, layer.num_points
        weights = layer.attention_weights(query).view(batch, queries, heads, levels * points)
        weights = (weights.softmax(-1) if self.softmax else weights).view(batch, queries, heads, levels, points)
        offsets = layer.sampling_offsets(query).view(batch, queries, heads, levels, points, 2)
        references = reference_points[:, :, None, :, None]  # (N, queries, 1, levels, 1, 2 or 4)
        output = 0.0
        for level, (part, (height, width)) in enumerate(zip(_split(value, spatial_shapes), spatial_shapes)):
            reference = references[:, :, :, level]
            if reference.shape[-1] == 4:
                places = reference[..., :2] + offsets[:, :, :, level] * reference[..., 2:] * (0.5 / points)
            else:
                size = torch.stack([reference.new_tensor(1.0) * width, reference.new_tensor(1.0) * height])
                places = reference + offsets[:, :, :, level] / size
            # One plane per image and head: (N * heads, queries, points, 2) and (N * heads, D, H, W).
            grid = (places * 2 - 1).transpose(1, 2).flatten(0, 1)
            planes = part.transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1).unflatten(2, (height, width))
            sampled = F.grid_sample(planes.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (N * heads, 1, queries, points)
            output = output + (sampled * weight).sum(-1)
        output = output.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
        return layer.output_proj(output.to(value.dtype)) + identity


def _split(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """The levels of `(N, keys, C)`."""
    parts, start = [], 0
    for height, width in shapes:
        parts.append(tokens[:, start : start + height * width])
        start = start + height * width
    return parts


class PixelDecoder(nn.Module):
    """`MSDeformAttnPixelDecoder`: maps `(N, C, H, W)` of strides 4 to 32 to mask features and three encoded maps."""

    def __init__(self, decoder: MSDeformAttnPixelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        decoder = self.decoder
        batch = features[0].shape[0]
        tokens, positions, references, shapes = [], [], [], []
        for index in range(decoder.num_encoder_levels):  # from the coarsest
            feature = features[decoder.num_input_levels - index - 1]
            height, width = feature.shape[2:]
            nothing = torch.zeros(batch, height, width, dtype=torch.bool, device=feature.device)
            position = decoder.postional_encoding(nothing) + decoder.level_encoding.weight[index].view(1, -1, 1, 1)
            x = (torch.arange(width, device=feature.device) + 0.5) / width
            y = (torch.arange(height, device=feature.device) + 0.5) / height
            grid = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], -1)
            tokens.append(decoder.input_convs[index](feature).flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
            references.append(grid.flatten(0, 1))
            shapes.append((height, width))
        reference = torch.cat(references)[None, :, None].expand(batch, -1, len(shapes), -1)
        memory = torch.cat(tokens, 1)
        position = torch.cat(positions, 1)
        for layer in decoder.encoder.layers:
            memory = layer(memory, position, None, reference_points=reference, spatial_shapes=shapes)
        maps = [
            part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(_split(memory, shapes), shapes, strict=True)
        ]
        for index in range(decoder.num_input_levels - decoder.num_encoder_levels - 1, -1, -1):
            fine = decoder.lateral_convs[index](features[index])
            coarse = F.interpolate(maps[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
            maps.append(decoder.output_convs[index](fine + coarse))
        return decoder.mask_feature(maps[-1]), maps[: decoder.num_outs]


class AveragePool(nn.Module):
    """`AdaptiveAvgPool2d` to `size` x `size` of a map `(N, C, H, W)` whose H and W need not be multiples of it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """The share of every pixel in every bin, `(size, length)`."""
        index = torch.arange(self.size, device=like.device)
        start = (index * length) // self.size
        stop = ((index + 1) * length + self.size - 1) // self.size
        pixel = torch.arange(length, device=like.device)
        inside = (pixel >= start[:, None]) & (pixel < stop[:, None])
        return (inside / (stop - start)[:, None]).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(length, x) for length in x.shape[2:])
        return rows @ x @ columns.t()


def exportable_copy(model: nn.Module) -> nn.Module:
    """A copy of a detector or segmentor, sharing its weights, with the layers of this file."""
    model = shared_copy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, MultiScaleDeformableAttention):
                setattr(module, name, DeformableAttention(child))
            elif isinstance(child, MSDeformAttnPixelDecoder):
                setattr(module, name, PixelDecoder(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, AveragePool(child.output_size))
            elif isinstance(child, SinePositionalEncoding):
                setattr(module, name, nn.Sequential(child, WeightsType()))
    return model
