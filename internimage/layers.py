"""Building blocks of InternImage, from small to large: stem, downsampling, MLP, block, level.

InternImage (Wang et al., CVPR 2023, section 3.2); module names are those of the released state dicts. Activations
between blocks are `(N, H, W, C)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops_dcnv3.modules import build_act_layer, build_norm_layer, fused_conv_norm_act
from ops_dcnv3.norm import (
    LayerNorm,
    drop_path_factors,
    has_no_hooks,
    is_candidate,
    layer_norm,
    layer_norm_in,
    post_norm,
    pre_norm,
    serves,
)
from ops_dcnv3.onednn import Linear, can_fuse, mlp
from ops_dcnv3.schema import is_transformed

__all__ = ["Block", "DownsampleLayer", "Level", "MLPLayer", "StemLayer"]


@register_notrace_module  # one node in a graph of torch.fx: its path depends on shapes and devices
class StemLayer(nn.Module):
    """Two 3x3 convolutions of stride 2: `(N, in_chans, H, W)` to `(N, H/4, W/4, out_chans)`."""

    def __init__(self, in_chans: int, out_chans: int, act_layer: str = "GELU", norm_layer: str = "LN") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans // 2, 3, stride=2, padding=1)
        self.norm1 = build_norm_layer(out_chans // 2, norm_layer, "channels_first", "channels_first")
        self.act = build_act_layer(act_layer)
        self.conv2 = nn.Conv2d(out_chans // 2, out_chans, 3, stride=2, padding=1)
        self.norm2 = build_norm_layer(out_chans, norm_layer, "channels_first", "channels_last")

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.conv1.in_channels:
            raise ValueError(f"images must have shape (N, {self.conv1.in_channels}, H, W); got {tuple(x.shape)}")
        if torch.compiler.is_compiling() or not is_transformed(x):  # torch.func.vmap has no memory formats
            x = x.contiguous(memory_format=torch.channels_last)  # so that all later permutes are views
        fused = fused_conv_norm_act(x, self.conv1, self.norm1, self.act)
        x = self.act(self.norm1(self.conv1(x))) if fused is None else fused.permute(0, 3, 1, 2)
        return self.norm2(self.conv2(x))


class DownsampleLayer(nn.Module):
    """A 3x3 convolution of stride 2: `(N, H, W, C)` to `(N, H/2, W/2, 2C)`."""

    def __init__(self, channels: int, norm_layer: str = "LN") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = build_norm_layer(2 * channels, norm_layer, "channels_first", "channels_last")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)))


class MLPLayer(nn.Module):
    """Linear, activation, linear on the channels of `(..., C)`."""

    def __init__(
        self, channels: int, hidden_channels: int, act_layer: str = "GELU", drop: float = 0.0, fc2_bias: bool = True
    ) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.act = build_act_layer(act_layer)
        self.fc2 = Linear(hidden_channels, channels, bias=fc2_bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop.p) and can_fuse(self.act, self.fc1, self.fc2):
            return mlp(x, self.act, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Pending(NamedTuple):
    """A residual branch that is not added yet: `keep * gamma * branch`, with None for a factor of 1."""

    branch: Tensor
    gamma: Tensor | None
    keep: Tensor | None

    def added_to(self, x: Tensor) -> Tensor:
        branch = self.branch if self.gamma is None else self.gamma * self.branch
        return x + (branch if self.keep is None else branch * self.keep)


def _settled(x: Tensor, pending: Pending | None) -> Tensor:
    return x if pending is None else pending.added_to(x)


def _normed(x: Tensor, pending: Pending | None, norm: LayerNorm, as_input: bool) -> tuple[Tensor, Tensor]:
    """`x` with the pending branch added, and its norm, on a GPU."""
    if pending is None:
        return x, layer_norm(x, norm, as_input)
    return pre_norm(x, pending.branch, norm, pending.gamma, pending.keep, as_input)


@register_notrace_module
class Block(nn.Module):
    """DCNv3 and MLP, each in a residual branch: `(N, H, W, C)` to `(N, H, W, C)`.

    The norm is before the operator (pre-norm), after it (`post_norm`), or on both sides (`res_post_norm`, which layer
    scale and `post_norm` override, as in the original project).
    """

    def __init__(
        self,
        dcn: nn.Module,
        channels: int,
        mlp: nn.Module,
        drop_path: float = 0.0,
        post_norm: bool = False,
        res_post_norm: bool = False,
        layer_scale: float | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.res_post_norm = res_post_norm
        self.layer_scale = layer_scale is not None
        self.with_cp = with_cp
        if self.layer_scale:
            self.gamma1 = nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((channels,), float(layer_scale)))
        self.norm1 = build_norm_layer(channels)
        self.dcn = dcn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = build_norm_layer(channels)
        self.mlp = mlp
        if res_post_norm:
            self.res_post_norm1 = build_norm_layer(channels)
            self.res_post_norm2 = build_norm_layer(channels)

    def _branch(self, x: Tensor, index: int) -> Tensor:
        layer = (self.dcn, self.mlp)[index - 1]
        norm = getattr(self, f"norm{index}")
        y = norm(layer(x)) if self.post_norm else layer(norm(x))
        if self.layer_scale:
            return getattr(self, f"gamma{index}") * y
        if self.res_post_norm and not self.post_norm:
            return getattr(self, f"res_post_norm{index}")(y)
        return y

    def _served_norms(self, x: Tensor) -> list[LayerNorm] | None:
        """The norms of this block if `ops_dcnv3.norm` can fuse them with the adjacent sums, else None."""
        if not is_candidate(x) or type(self)._branch is not Block._branch:
            return None
        names = ("norm1", "norm2", "res_post_norm1", "res_post_norm2")[: 4 if self.res_post_norm else 2]
        modules, gammas = self._modules, (self.gamma1, self.gamma2) if self.layer_scale else ()
        norms, drop_path = [layer_norm_in(modules[name]) for name in names], modules["drop_path"]
        known = None not in norms and type(drop_path) in (DropPath, nn.Identity) and has_no_hooks(drop_path)
        return norms if known and serves(x, norms[0], *gammas) else None

    def chainable_norms(self, x: Tensor) -> list[LayerNorm] | None:
        """The argument `norms` of `chained` if that can replace a call of this block, else None."""
        norms = self._served_norms(x)
        called = self._compiled_call_impl is not None or (self.with_cp and x.requires_grad) or not has_no_hooks(self)
        return None if called else norms

    def _fused_branch(
        self, x: Tensor, pending: Pending | None, norms: list[LayerNorm], index: int
    ) -> tuple[Tensor, Pending | None]:
        layer = (self.dcn, self.mlp)[index]
        gamma = (self.gamma1, self.gamma2)[index] if self.layer_scale else None
        if self.post_norm:
            x, after = _settled(x, pending), norms[index]
            y = layer(x)
        else:
            x, y = _normed(x, pending, norms[index], as_input=True)
            y, after = layer(y), norms[2 + index] if self.res_post_norm and not self.layer_scale else None
        keep = drop_path_factors(self.drop_path, y, gamma, after_norm=after is not None)
        if after is None:
            return x, Pending(y, gamma, keep)
        return post_norm(x, y, after, gamma, keep), None

    def chained(self, x: Tensor, pending: Pending | None, norms: list[LayerNorm]) -> tuple[Tensor, Pending | None]:
        """The block on `x` with `pending` added. Its last sum may stay pending, to be fused with the next norm."""
        x, pending = self._fused_branch(x, pending, norms, 0)
        return self._fused_branch(x, pending, norms, 1)

    def _forward(self, x: Tensor) -> Tensor:
        if norms := self._served_norms(x):
            return _settled(*self.chained(x, None, norms))
        x = x + self.drop_path(self._branch(x, 1))
        return x + self.drop_path(self._branch(x, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)


class Level(nn.Module):
    """The blocks of one resolution and an optional norm: `(N, H, W, C)` to `(N, H, W, C)`.

    `downsample`, which the caller applies, makes the next level's input of the result; after the last level it is the
    identity.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        channels: int,
        downsample: bool,
        norm: bool,
        post_norm_block_ids: Sequence[int] = (),
        norm_layer: str = "LN",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm_layer(channels) if norm else None
        self.post_norm_block_ids = tuple(post_norm_block_ids)
        if self.post_norm_block_ids:
            self.post_norms = nn.ModuleList([build_norm_layer(channels) for _ in self.post_norm_block_ids])
        self.downsample = DownsampleLayer(channels, norm_layer) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pending = None  # the branch that the next norm adds
        for index, block in enumerate(self.blocks):
            if type(block) is Block and (norms := block.chainable_norms(x)):
                x, pending = block.chained(x, pending, norms)
            else:
                x, pending = block(_settled(x, pending)), None
            if index in self.post_norm_block_ids:
                x, pending = self.post_norms[self.post_norm_block_ids.index(index)](_settled(x, pending)), None
        if pending is not None and self.norm is not None and (norm := layer_norm_in(self.norm)):
            return _normed(x, pending, norm, as_input=False)[1]
        x = _settled(x, pending)
        return x if self.norm is None else self.norm(x)
