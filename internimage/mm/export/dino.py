"""DINO of mmdet as one module from images to boxes and labels, for exporters (Zhang et al., 2023).

The layers are mmdet's, with deformable attention from `layers.py`; the sizes of the pictures are found from their
padding. Results are those of mmdet's test path. Places, references and boxes are float32 also in half models: near 1,
float16 has steps of 0.6 pixels of 1,333.
"""

import torch
import torch.nn.functional as F
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor, nn

from .boxes import clip, picture_sizes, take
from .layers import Shapes, WeightsType, exportable_copy

__all__ = ["DINO"]


def _places(shapes: Shapes, ratios: Tensor) -> Tensor:
    """Where in its picture each token is, `(N, keys, 2)`: x and y, in 0 to 1 unless the token is padding."""
    levels = []
    for level, (height, width) in enumerate(shapes):
        x = (torch.arange(width, device=ratios.device) + 0.5) / (ratios[:, level, :1] * width)  # (N, W)
        y = (torch.arange(height, device=ratios.device) + 0.5) / (ratios[:, level, 1:] * height)
        x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
        levels.append(torch.stack([x, y], -1).flatten(1, 2))
    return torch.cat(levels, 1)


class DINO(nn.Module):
    """A DINO detector.

    `forward` takes normalised images `(N, 3, H, W)`, padded with zeros at the right and bottom, and returns boxes and
    scores `(N, K, 5)` in pixels and labels `(N, K)` int64. Scores fall.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = exportable_copy(detector)
        decoder = self.detector.decoder
        decoder.ref_point_head = nn.Sequential(WeightsType(), decoder.ref_point_head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        detector = self.detector
        sizes = picture_sizes(images)
        features = detector.extract_feat(images)
        tokens, positions, padding, ratios, shapes = self._tokens(features, images.shape[2:], sizes)
        places = _places(shapes, ratios)
        memory = tokens
        for layer in detector.encoder.layers:
            memory = layer(
                memory,
                positions,
                padding,
                reference_points=places[:, :, None] * ratios[:, None],
                spatial_shapes=shapes,
            )
        queries = detector.query_embedding.weight[None].expand(images.shape[0], -1, -1)
        states, references = detector.decoder(
            query=queries,
            value=memory,
            key_padding_mask=padding,
            self_attn_mask=None,
            reference_points=self._propose(memory, places, padding, shapes),
            reg_branches=detector.bbox_head.reg_branches,
            spatial_shapes=shapes,
            level_start_index=None,
            valid_ratios=ratios,
        )
        head, last = detector.bbox_head, detector.decoder.num_layers - 1
        boxes = head.reg_branches[last](states[last]) + inverse_sigmoid(references[last])
        return self._select(head.cls_branches[last](states[last]).float(), boxes.sigmoid(), sizes)

    def _tokens(self, features: tuple[Tensor, ...], whole: tuple[int, int], sizes: Tensor):
        """The levels as tokens `(N, keys, C)`, their positions, which are padding, the pictures' shares, the shapes."""
        detector = self.detector
        x = torch.arange(whole[1], device=sizes.device) >= sizes[:, :1]  # (N, W)
        y = torch.arange(whole[0], device=sizes.device) >= sizes[:, 1:]
        outside = (y[:, None, :, None] | x[:, None, None, :]).float()
        tokens, positions, padding, ratios, shapes = [], [], [], [], []
        for level, feature in enumerate(features):
            height, width = feature.shape[2:]
            mask = F.interpolate(outside, size=(height, width))[:, 0] > 0.5
            position = detector.positional_encoding(mask) + detector.level_embed[level].view(1, -1, 1, 1)
            share = [(~mask[:, 0, :]).sum(1) / width, (~mask[:, :, 0]).sum(1) / height]
            tokens.append(feature.flatten(2).transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
            padding.append(mask.flatten(1))
            ratios.append(torch.stack(share, -1))
            shapes.append((height, width))
        return torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(padding, 1), torch.stack(ratios, 1), shapes

    def _propose(self, memory: Tensor, places: Tensor, padding: Tensor, shapes: Shapes) -> Tensor:
        """The decoder's first references `(N, queries, 4)`, centres and extents in 0 to 1: the likeliest tokens."""
        detector = self.detector
        extents = [places.new_full((1,), 0.05 * 2.0**level).expand(h * w) for level, (h, w) in enumerate(shapes)]
        extent = torch.cat(extents)[None, :, None].expand_as(places)
        boxes = torch.cat([places, extent], -1)
        unusable = padding | ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
        logits = torch.log(boxes / (1 - boxes)).masked_fill(unusable[..., None], float("inf"))
        memory = memory.masked_fill(unusable[..., None], 0.0)
        memory = detector.memory_trans_norm(detector.memory_trans_fc(memory))
        last = detector.decoder.num_layers
        scores = detector.bbox_head.cls_branches[last](memory).amax(-1)
        boxes = detector.bbox_head.reg_branches[last](memory) + logits
        return take(boxes, scores.topk(detector.num_queries, dim=1)[1]).sigmoid()

    def _select(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The best pairs of query and class; boxes are centres and extents in 0 to 1 of the picture."""
        head = self.detector.bbox_head
        scores, index = logits.sigmoid().flatten(1).topk(head.test_cfg.get("max_per_img", logits.shape[1]), dim=1)
        boxes = take(boxes, index // head.num_classes)
        center, half = boxes[..., :2], boxes[..., 2:] * 0.5
        boxes = torch.cat([center - half, center + half], -1) * torch.cat([sizes, sizes], 1)[:, None]
        return torch.cat([clip(boxes, sizes), scores[..., None]], -1), index % head.num_classes
