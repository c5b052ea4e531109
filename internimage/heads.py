"""Classification heads of InternImage: convolution and pooling (T to XL), attention pooling (H and G).

Attribute names are the state-dict keys of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops_dcnv3.modules import build_act_layer, build_norm_layer

__all__ = ["AttentionPool", "conv_head"]


def conv_head(channels: int, hidden_channels: int, act_layer: str = "GELU") -> nn.Sequential:
    """1x1 convolution, BatchNorm and activation on `(N, C, H, W)`, before the average pool."""
    return nn.Sequential(
        nn.Conv2d(channels, hidden_channels, 1, bias=False),
        build_norm_layer(hidden_channels, "BN", "channels_first", "channels_first"),
        build_act_layer(act_layer),
    )


class CrossAttention(nn.Module):
    """Multi-head attention of `(N, Lq, C)` queries over `(N, L, C)` keys and values, to `(N, Lq, out_channels)`."""

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in "qkv":
            setattr(self, f"{name}_bias", nn.Parameter(torch.zeros(channels)))
        for name in "qkv":
            setattr(self, name, nn.Linear(channels, channels, bias=False))
        self.proj = nn.Linear(channels, out_channels)

    def _heads(self, x: Tensor, name: str) -> Tensor:
        x = F.linear(x, getattr(self, name).weight, getattr(self, f"{name}_bias"))
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, L, C / heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(self._heads(query, "q"), self._heads(key, "k"), self._heads(value, "v"))
        return self.proj(y.transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Pools `(N, L, C)` tokens to `(N, out_channels)`: attention whose query is the mean token."""

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = build_norm_layer(channels)
        self.norm1_k = build_norm_layer(channels)
        self.norm1_v = build_norm_layer(channels)
        self.cross_dcn = CrossAttention(channels, num_heads, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        query = x.mean(1, keepdim=True)
        return self.cross_dcn(self.norm1_q(query), self.norm1_k(x), self.norm1_v(x)).squeeze(1)
