"""Parameter groups: the learning rate and weight decay of every parameter.

Two rules of the original project: one for classification (`param_groups`) and one for the detection and segmentation
recipes (`mm_param_scales`). They differ in where layer decay starts and which parameters it includes.
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn

__all__ = ["layer_index", "mm_param_scales", "param_groups"]

_BLOCK = re.compile(r"levels\.(\d+)\.blocks\.(\d+)\.")
_LEVEL_END = re.compile(r"levels\.(\d+)\.(?:norm|downsample)\.")
_POST_NORM = re.compile(r"levels\.(\d+)\.post_norms\.(\d+)\.")


def layer_index(name: str, depths: Sequence[int]) -> int:
    """Number of a parameter's layer for layer decay: the stem and the first block have 0, the last block and the head
    `sum(depths) - 1`; what stands between two levels belongs to the first block of the second one."""
    if name.startswith("patch_embed."):
        return 0
    if match := _BLOCK.match(name):
        level, block = map(int, match.groups())
        return sum(depths[:level]) + block
    if (match := _LEVEL_END.match(name)) and int(match[1]) + 1 < len(depths):
        return sum(depths[: int(match[1]) + 1])
    return sum(depths) - 1  # the head, the last level's norm and the post-norms of level 2


def param_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    dcn_lr_mul: float | None = None,
) -> list[dict]:
    """Group a classifier's parameters by learning-rate scale and weight decay.

    One-dimensional parameters, biases and the names in `model.no_weight_decay()` have no weight decay. Frozen
    parameters are excluded.

    Args:
        model: an InternImage classifier; with `layer_decay` it must have `depths`.
        base_lr: learning rate of the head and the last block.
        weight_decay: decay of all other parameters.
        layer_decay: ratio between the learning rates of neighbouring blocks; None for one rate everywhere.
        dcn_lr_mul: additional factor for offsets and centre feature scales. As in the original project, it has no
            effect without layer decay.

    Returns:
        Groups with `params`, `name`, `names`, `weight_decay`, `lr_scale` and `lr` = base_lr * lr_scale.
        `initial_lr` is the unscaled rate: timm's schedulers start from it and apply `lr_scale` themselves.
    """
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if layer_decay is not None:
            scale = layer_decay ** (sum(model.depths) - 1 - layer_index(name, model.depths))
            if dcn_lr_mul is not None and ("offset" in name or "center_feature_scale_proj" in name):
                scale *= dcn_lr_mul
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in skip
        if (scale, decays) not in groups:
            groups[scale, decays] = {
                "params": [],
                "name": f"lr x {scale:.3g}, {'decay' if decays else 'no decay'}",
                "names": [],  # not torch's `param_names`: optimizers that shard the groups reject it
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale,
                "lr": base_lr * scale,
                "initial_lr": base_lr,
            }
        groups[scale, decays]["params"].append(parameter)
        groups[scale, decays]["names"].append(name)
    return list(groups.values())


_SEGMENTATION_AT_ZERO = tuple(
    f"decode_head.{name}" for name in ("mask_embed", "cls_embed", "level_embed", "query_embed", "query_feat")
) + ("backbone.cb_modules.0.patch_embed",)


def _mm_layer_id(name: str, depths: Sequence[int], num_layers: int, segmentation: bool) -> int:
    """Return 0 for the stem, 1 for the first block and so on; `num_layers + 1` is the full learning rate."""
    if "level_embed" in name or name.startswith("backbone.patch_embed."):
        return 0
    if segmentation and name.startswith(_SEGMENTATION_AT_ZERO):
        return 0
    inside = name.removeprefix("backbone.")
    if inside != name:
        if match := _BLOCK.match(inside) or _POST_NORM.match(inside):
            level, block = map(int, match.groups())
            return 1 + block + sum(depths[:level])
        if match := _LEVEL_END.match(inside):
            # The norm of the last level has the id of that level's first block.
            level = min(int(match[1]) + 1, len(depths) - 1)
            return 1 + sum(depths[:level])
    return num_layers + 1


def mm_param_scales(
    named_params: Iterable[tuple[str, nn.Parameter]],
    *,
    num_layers: int,
    layer_decay_rate: float,
    depths: Sequence[int],
    offset_lr_scale: float = 1.0,
    dino_head: bool = False,
    backbone_small_lr: bool = False,
    segmentation: bool = False,
) -> dict[str, tuple[float, bool]]:
    """Return `{name: (learning-rate scale, has weight decay)}` by the rule of the detection and segmentation recipes.

    The keyword arguments are the recipes' `paramwise_cfg`. Names are those of the complete detector or segmentor
    (`backbone.levels...`). Frozen parameters are excluded.

    Args:
        named_params: `model.named_parameters()`.
        num_layers: number of blocks as the recipe counts them.
        layer_decay_rate: scale = rate ** (num_layers + 1 - layer id).
        depths: blocks per level of the backbone.
        offset_lr_scale: factor for `sampling_offsets` and `reference_points`; in segmentation only in the backbone.
        dino_head: use 0.1 as that factor outside the backbone.
        backbone_small_lr: an additional factor of 0.1 for every scale below 1.
        segmentation: use the variant of the segmentation recipes.
    """
    scales = {}
    for name, parameter in named_params:
        if not parameter.requires_grad:
            continue
        scale = layer_decay_rate ** (num_layers + 1 - _mm_layer_id(name, depths, num_layers, segmentation))
        if backbone_small_lr and scale < 1:
            scale *= 0.1
        if "sampling_offsets" in name or "reference_points" in name:
            in_backbone = name.startswith("backbone.")
            if dino_head and not in_backbone:
                scale *= 0.1
            elif in_backbone or not segmentation:
                scale *= offset_lr_scale
        decays = (
            parameter.ndim > 1
            and not name.endswith(".bias")
            and not any(part in name for part in ("relative_position", "norm", "sampling_offsets"))
        )
        scales[name] = (scale, decays)
    return scales
