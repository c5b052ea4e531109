"""InternImage: a convolutional backbone with DCNv3 as its core operator.

Paper: InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions (Wang et al., 2023).
Original project: https://github.com/OpenGVLab/InternImage (MIT licence). Keyword names and state-dict keys are the
released ones; the calls beside `forward` are those of timm's models.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import trunc_normal_
from timm.models import FeatureInfo
from torch import Tensor, nn

import ops_dcnv3

from .checkpoint import install_layout_hook
from .heads import AttentionPool, conv_head
from .inference import optimize_for_inference
from .layers import Block, Level, MLPLayer, StemLayer
from .optim import layer_index

__all__ = ["InternImage"]

# The attention-pooling head's sizes are fixed by the checkpoints it was made for.
_CLIP_TOKENS, _CLIP_HEADS, _CLIP_EMBED = 1024, 16, 768


class InternImage(nn.Module):
    """The backbone and, without `features_only`, the classification head.

    Args:
        core_op: `DCNv3`, or `DCNv3_pytorch` for the pure-PyTorch backend.
        channels: of the first level; doubles with every level.
        depths: blocks per level.
        groups: operator groups per level; each must divide the level's channels.
        num_classes: 0 for no classifier.
        in_chans: channels of the image.
        mlp_ratio: hidden to input channels of the MLPs.
        drop_rate: dropout after the stem and in the MLPs.
        drop_path_rate: of the last block, rising linearly from 0; of every block if `drop_path_type` is `uniform`.
        drop_path_type: `linear` or `uniform`.
        act_layer: GELU, ReLU or SiLU.
        norm_layer: LN or BN, of stem, downsampling and depthwise branch (block norms are always LayerNorm).
        layer_scale: initial value of the per-channel scales of the residual branches; None for no scales.
        offset_scale: of the operator.
        post_norm: norms after operator and MLP instead of before (S, B, L, XL, G).
        res_post_norm: norms before and after operator and MLP (H).
        cls_scale: channels of the convolutional head relative to the last level.
        with_cp: gradient checkpointing of every block.
        dw_kernel_size: of the operator's depthwise branch; defaults to 3.
        use_clip_projector: the attention-pooling head (H, G).
        level2_post_norm, level2_post_norm_block_ids: additional norms after these blocks of level 2 (H, G).
        center_feature_scale, remove_center: of the operator.
        features_only: no head; `forward` returns the feature maps of `out_indices`, which `feature_info` describes
            (`feature_info.channels()`, `.reduction()`).
        out_indices: levels to return; implies `features_only`. Defaults to all four.
        use_dcn_v4_op: no effect; a released config has it.
        global_pool: of the head: `avg`, or `map` for attention pooling, which are the defaults; `""` for no pooling,
            only without a classifier (see `forward_head`).

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self,
        core_op: str = "DCNv3",
        channels: int = 64,
        depths: Sequence[int] = (4, 4, 18, 4),
        groups: Sequence[int] = (4, 8, 16, 32),
        num_classes: int = 1000,
        in_chans: int = 3,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_type: str = "linear",
        act_layer: str = "GELU",
        norm_layer: str = "LN",
        layer_scale: float | None = None,
        offset_scale: float = 1.0,
        post_norm: bool = False,
        res_post_norm: bool = False,
        cls_scale: float = 1.5,
        with_cp: bool = False,
        dw_kernel_size: int | None = None,
        use_clip_projector: bool = False,
        level2_post_norm: bool = False,
        level2_post_norm_block_ids: Sequence[int] | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        use_dcn_v4_op: bool = False,
        global_pool: str | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != len(groups):
            raise ValueError(f"depths and groups must have one entry per level; got {depths} and {groups}")
        self.core_op = core_op
        self.depths = tuple(depths)
        self.num_levels = len(depths)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.pruned: tuple[str, ...] = ()  # prefixes of the parameters that `prune_intermediate_layers` removed
        self.use_clip_projector = use_clip_projector
        self.features_only = features_only or out_indices is not None
        self.out_indices = tuple(range(self.num_levels) if out_indices is None else out_indices)
        level_channels = [channels * 2**i for i in range(self.num_levels)]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"levels.{i}"} for i, width in enumerate(level_channels)
        ]
        if self.features_only:
            self.feature_info = FeatureInfo(self.feature_info, self.out_indices)
        post_norm_ids = tuple(level2_post_norm_block_ids or ()) if level2_post_norm else ()
        drop_paths = _drop_path_rates(drop_path_rate, sum(depths), drop_path_type)

        self.patch_embed = StemLayer(in_chans, channels, act_layer, norm_layer)
        self.pos_drop = nn.Dropout(drop_rate)
        self.levels = nn.ModuleList()
        for i, width in enumerate(level_channels):
            blocks = [
                Block(
                    dcn=self._build_dcn(
                        channels=width,
                        dw_kernel_size=dw_kernel_size,
                        group=groups[i],
                        offset_scale=offset_scale,
                        act_layer=act_layer,
                        norm_layer=norm_layer,
                        center_feature_scale=center_feature_scale,
                        remove_center=remove_center,
                    ),
                    channels=width,
                    mlp=self._build_mlp(width, int(width * mlp_ratio), act_layer, drop_rate),
                    drop_path=drop_paths.pop(0),
                    post_norm=post_norm,
                    res_post_norm=res_post_norm,
                    layer_scale=layer_scale,
                    with_cp=with_cp,
                )
                for _ in range(depths[i])
            ]
            self.levels.append(
                Level(
                    blocks,
                    width,
                    downsample=i < self.num_levels - 1,
                    norm=not post_norm or center_feature_scale,
                    post_norm_block_ids=post_norm_ids if i == 2 else (),
                    norm_layer=norm_layer,
                )
            )
        self.global_pool = ("map" if use_clip_projector else "avg") if global_pool is None else global_pool
        self._build_head(level_channels, cls_scale, act_layer)
        self.apply(self._init_weights)
        install_layout_hook(self)

    def _build_dcn(self, **kwargs) -> nn.Module:
        """The core operator of one block."""
        operators = {"DCNv3": ops_dcnv3.DCNv3, "DCNv3_pytorch": ops_dcnv3.DCNv3_pytorch}
        if self.core_op not in operators:
            raise ValueError(f"core_op must be one of {', '.join(operators)}; got {self.core_op!r}")
        return operators[self.core_op](**kwargs)

    def _build_mlp(self, *args) -> nn.Module:
        """The MLP of one block."""
        return MLPLayer(*args)

    def _build_head(self, level_channels: list[int], cls_scale: float, act_layer: str) -> None:
        width = level_channels[-1]
        self.num_features = width
        if self.features_only:
            return
        if self.use_clip_projector:
            self.num_features, self.head_hidden_size = _CLIP_TOKENS, _CLIP_EMBED
            self.dcnv3_head_x4 = nn.Sequential(nn.Conv2d(width, 4 * _CLIP_TOKENS, 1), nn.PixelShuffle(2))
            self.dcnv3_head_x3 = nn.Conv2d(level_channels[-2], _CLIP_TOKENS, 1)
            self.clip_projector = AttentionPool(_CLIP_TOKENS, _CLIP_HEADS, _CLIP_EMBED)
            self.fc_norm = ops_dcnv3.modules.build_norm_layer(_CLIP_EMBED)
        else:
            self.head_hidden_size = int(width * cls_scale)
            self.conv_head = conv_head(width, self.head_hidden_size, act_layer)
        self.reset_classifier(self.num_classes, self.global_pool)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        # `apply` visits children first, so an operator layer resets its projections after their general initialization.
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (ops_dcnv3.DCNv3, ops_dcnv3.DCNv4)):
            module.reset_parameters()

    def _level_features(self, x: Tensor, last: int | None = None, with_stem: bool = False) -> list[Tensor]:
        """Feature maps `(N, C, H, W)` of the levels up to `last`, each before its downsampling; first of the stem."""
        x = self.pos_drop(self.patch_embed(x))
        features = [x.permute(0, 3, 1, 2)] if with_stem else []
        for level in self.levels[: None if last is None else last + 1]:
            feature = level(x)
            features.append(feature.permute(0, 3, 1, 2))
            x = level.downsample(feature)
        return features

    def _pre_head(self, features: list[Tensor]) -> Tensor:
        """The input of the head, `(N, C, H, W)`: the last level, or with attention pooling the sum of the last two."""
        if not self.use_clip_projector or self.features_only:
            return features[-1]
        x3 = self.dcnv3_head_x3(features[-2])
        # If the image size is not a multiple of 32, the shuffled map is up to one row and column larger than level 2.
        return self.dcnv3_head_x4(features[-1])[..., : x3.shape[-2], : x3.shape[-1]] + x3

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `(N, in_chans, H, W)` to the unpooled map `(N, num_features, H', W')` that `forward_head` takes.

        H' = H/32 with the convolutional head, H/16 with attention pooling.
        """
        return self._pre_head(self._level_features(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map of `forward_features` to logits `(N, num_classes)`, or to `(N, head_hidden_size)` if `pre_logits`.

        With `global_pool=""` the result is a map: that of the convolutional head, `(N, head_hidden_size, H/32, W/32)`,
        or, since attention pooling has no layer before it, the map itself, `(N, num_features, H/16, W/16)`.
        """
        if not self.use_clip_projector:
            x = self.conv_head(x)
            x = x.mean((2, 3)) if self.global_pool else x
        elif self.global_pool:
            x = self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Image `(N, in_chans, H, W)` to logits `(N, num_classes)`; with `features_only` to a list of `(N, C, H, W)`.

        Feature maps are views of channels-last tensors, at strides 4, 8, 16, 32.
        """
        if self.features_only:
            features = self._level_features(x, max(self.out_indices))
            return [features[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of levels, with timm's signature.

        Args:
            x: image `(N, in_chans, H, W)`.
            indices: levels; an int n for the last n; None for all.
            norm: no effect: the maps are always those after the level's norm.
            stop_early: stop after the last requested level (with `intermediates_only`).
            output_fmt: `NCHW` or `NHWC`.
            intermediates_only: return only the maps, without the result of `forward_features`.

        Raises:
            ValueError: an index or a format that does not exist.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC'; got {output_fmt!r}")
        taken = self._take_levels(indices)
        features = self._level_features(x, max(taken) if stop_early and intermediates_only else None)
        maps = [features[i].permute(0, 2, 3, 1) if output_fmt == "NHWC" else features[i] for i in taken]
        return maps if intermediates_only else (self._pre_head(features), maps)

    def _take_levels(self, indices: int | Sequence[int] | None) -> list[int]:
        """Numbers of levels, counted from 0: None for all, an int n for the last n, negative ones from the end."""
        count, last = self.num_levels, self.num_levels if indices is None else indices
        wanted = range(-last, 0) if isinstance(last, int) else indices
        if not wanted or not all(-count <= i < count for i in wanted):
            raise ValueError(f"indices must be levels 0 to {count - 1}, or a number of last levels; got {indices}")
        return [i % count for i in wanted]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of these levels do not need, so that all parameters get gradients.

        `indices` as in `forward_intermediates`; returned as levels counted from 0. `prune_norm` has no effect: a map
        needs its level's norm. `prune_head=False` keeps the head if the last level stays; without it, `forward` returns
        the last map.
        """
        taken = self._take_levels(indices)
        last = max(taken)
        if last + 1 < self.num_levels:
            self.pruned += (f"levels.{last}.downsample.", *(f"levels.{i}." for i in range(last + 1, self.num_levels)))
            self.levels = self.levels[: last + 1]
            self.levels[-1].downsample = nn.Identity()
            self.num_levels, self.depths, prune_head = last + 1, self.depths[: last + 1], True
        if prune_head and not self.features_only:
            for name in ("dcnv3_head_x4", "dcnv3_head_x3", "clip_projector", "fc_norm"):
                self._modules.pop(name, None)
            self.use_clip_projector, self.conv_head = False, nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0: none). `global_pool` as in the constructor; None: the default, if classifying."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0; got {num_classes}")
        own = "map" if self.use_clip_projector else "avg"
        pool = (own if num_classes > 0 else self.global_pool) if global_pool is None else global_pool
        if pool not in (own, ""):
            raise ValueError(f"global_pool of this model is {own!r}, or '' for no pooling; got {pool!r}")
        if num_classes > 0 and not pool:
            raise ValueError(f"a classifier needs pooled features: pass global_pool={own!r}, or num_classes=0")
        self.num_classes, self.global_pool = num_classes, pool
        self.head = self._new_classifier(self.head_hidden_size)

    def _new_classifier(self, channels: int) -> nn.Module:
        """A classifier of this model's class count, with its device, dtype and mode."""
        like = self.patch_embed.conv1.weight
        head = nn.Linear(channels, self.num_classes, device=like.device) if self.num_classes > 0 else nn.Identity()
        self._init_weights(head)
        if getattr(head, "weight", like).dtype != like.dtype:  # fake tensors, as in `planning`, cannot be converted
            head = head.to(like.dtype)
        return head.train(self.training)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str] | Callable[[str], int]:
        """Layers for timm's layer decay: those of `internimage.optim.param_groups`; `coarse`: stem, levels, head."""
        levels = {"stem": r"^patch_embed", "levels": r"^levels\.(\d+)"}
        return levels if coarse else partial(layer_index, depths=self.depths)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for level in self.levels:
            for block in level.blocks:
                block.with_cp = enable

    def freeze_levels(self, count: int) -> None:
        """Freeze the first `count` levels, but not the stem (`FREEZE_BACKBONE` of the released recipes)."""
        for level in self.levels[:count]:
            level.requires_grad_(False)

    def optimize_for_inference(self) -> nn.Module:
        """A faster copy for inference; see `internimage.inference.optimize_for_inference`."""
        return optimize_for_inference(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: none (one-dimensional parameters have none by their shape)."""
        return set()


def _drop_path_rates(rate: float, depth: int, drop_path_type: str) -> list[float]:
    """Drop-path rate of each block."""
    if drop_path_type == "uniform":
        return [rate] * depth
    if drop_path_type != "linear":
        raise ValueError(f"drop_path_type must be 'linear' or 'uniform'; got {drop_path_type!r}")
    return [rate * i / max(depth - 1, 1) for i in range(depth)]
