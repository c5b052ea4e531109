"""Rename the keys of released detectors and segmentors from mmdet 2 and mmseg 0 to mmdet 3 and mmseg 1.

Only transformer heads changed: DINO is a detector, attentions and feed-forward blocks have names instead of numbers.
Mask R-CNN, Cascade, UperNet and SegFormer are identical. Every function takes the state dict of a complete detector or
segmentor and returns it renamed, or unchanged if it has another layout.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_mask2former", "from_mmdet2_dino"]

StateDict = dict[str, Tensor]

_OLD_TRANSFORMER = "bbox_head.transformer."

# Applied in this order; several may match a key.
_DINO_RULES = (
    (r"^bbox_head\.transformer\.level_embeds$", "level_embed"),
    (r"^bbox_head\.transformer\.enc_output_norm\.", "memory_trans_norm."),
    (r"^bbox_head\.transformer\.enc_output\.", "memory_trans_fc."),
    (r"^bbox_head\.transformer\.query_embed\.", "query_embedding."),
    (r"^bbox_head\.label_embedding\.", "dn_query_generator.label_embedding."),
    (r"^bbox_head\.transformer\.(encoder|decoder)\.", r"\1."),
    (r"^decoder\.ref_point_head\.0\.", "decoder.ref_point_head.layers.0."),
    (r"^decoder\.ref_point_head\.2\.", "decoder.ref_point_head.layers.1."),
    (r"^(encoder|decoder)\.layers\.(\d+)\.attentions\.0\.", r"\1.layers.\2.self_attn."),
    (r"^decoder\.layers\.(\d+)\.attentions\.1\.", r"decoder.layers.\1.cross_attn."),
    (r"^(encoder|decoder)\.layers\.(\d+)\.ffns\.0\.", r"\1.layers.\2.ffn."),
    (r"^neck\.0\.", "neck."),  # a composite backbone's neck was a list of one
)

_PIXEL = r"^decode_head\.pixel_decoder\.encoder\.layers\.(\d+)"
_DECODER = r"^decode_head\.transformer_decoder\.layers\.(\d+)"
_MASK2FORMER_RULES = (
    (_PIXEL + r"\.attentions\.0\.", r"decode_head.pixel_decoder.encoder.layers.\1.self_attn."),
    (_PIXEL + r"\.ffns\.0\.", r"decode_head.pixel_decoder.encoder.layers.\1.ffn."),
    # Here cross attention comes first.
    (_DECODER + r"\.attentions\.0\.", r"decode_head.transformer_decoder.layers.\1.cross_attn."),
    (_DECODER + r"\.attentions\.1\.", r"decode_head.transformer_decoder.layers.\1.self_attn."),
    (_DECODER + r"\.ffns\.0\.", r"decode_head.transformer_decoder.layers.\1.ffn."),
)


def _renamed(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> StateDict:
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def _from_split_feed_forward(state: StateDict) -> StateDict:
    """DINO of InternImage-G: join the parts of feed-forward blocks (`fc1_0` ..., `fc2_0` ..., `fc2_bias`).

    The hidden units are split into parts whose results are summed, which is equal to the ordinary two-layer block.
    """
    joined = {}
    for key, value in state.items():
        match = re.match(r"(.*\.ffns\.0\.)(fc1_0\.weight|fc1_0\.bias|fc2_0\.weight|fc2_bias)$", key)
        if match and match[2] == "fc2_bias":
            joined[match[1] + "layers.1.bias"] = value
        elif match:
            layer, kind = match[2].split("_0.")
            first = f"{match[1]}{layer}_"
            count = sum(other.startswith(first) and other.endswith(f".{kind}") for other in state)
            parts = [state[f"{first}{part}.{kind}"] for part in range(count)]
            place = "layers.0.0." if layer == "fc1" else "layers.1."
            joined[match[1] + place + kind] = torch.cat(parts, dim=0 if layer == "fc1" else 1)
        elif not re.search(r"\.ffns\.0\.fc[12]_\d+\.", key):
            joined[key] = value
    return joined


def from_mmdet2_dino(state: StateDict) -> StateDict:
    """DINO: the transformer was part of `bbox_head`."""
    if not any(key.startswith(_OLD_TRANSFORMER) for key in state):
        return state
    return _renamed(_from_split_feed_forward(state), _DINO_RULES)


def from_mask2former(state: StateDict) -> StateDict:
    """Mask2Former of mmseg 0: the attentions were numbered in execution order."""
    if not any(key.startswith("decode_head.transformer_decoder.layers.0.attentions.") for key in state):
        return state
    return _renamed(state, _MASK2FORMER_RULES)
