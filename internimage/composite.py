"""CBInternImage: two InternImages in a row, the first feeding the second at every level.

CBNetV2 (Liang et al., 2022), as the original project uses it for its largest detectors (CB-InternImage-H and -G).
Keys are the released ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import InternImage
from .checkpoint import install_layout_hook
from .errors import UserError

__all__ = ["CBInternImage"]


class CBInternImage(nn.Module):
    """Two backbones with the same architecture; the second has no stem and uses the output of the first one's stem.

    The input of level i of the second is `x + gamma_i * sum over j >= i of cb_linears[i][j - i](level j of the first)`;
    level j is resized to the size of level i by nearest neighbour, and `cb_linears[i][0]` is the identity.

    Args:
        out_indices: levels to return of both. If the first has one more, its first one is omitted.
        kwargs: as `InternImage`.
    """

    def __init__(self, out_indices: Sequence[Sequence[int]] = ((0, 1, 2, 3), (1, 2, 3)), **kwargs) -> None:
        super().__init__()
        first, second = out_indices
        self.out_indices = tuple(first[len(first) - len(second) :]), tuple(second)
        self.cb_modules = nn.ModuleList(InternImage(features_only=True, **kwargs) for _ in out_indices)
        follower = self.cb_modules[1]
        del follower.patch_embed
        self.depths, self.num_levels = follower.depths, follower.num_levels
        widths = [info["num_chs"] for info in follower.feature_info]
        for level, width in enumerate(widths):
            follower.register_parameter(f"gamma{level}", nn.Parameter(torch.zeros(width)))
        self.cb_linears = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(widths[source], widths[level], 1) if source != level else nn.Identity()
                for source in range(level, self.num_levels)
            )
            for level in range(self.num_levels)
        )
        install_layout_hook(self)

    def _feed(self, level: int, features: list[Tensor]) -> Tensor:
        """The sum of the first backbone's levels (`(N, C, H, W)`) for a level of the second, `(N, H, W, C)`."""
        size = features[level].shape[-2:]
        feed = sum(
            F.interpolate(linear(feature), size=size, mode="nearest")
            for linear, feature in zip(self.cb_linears[level], features[level:])
        )
        gamma = getattr(self.cb_modules[1], f"gamma{level}")
        # The released weights were trained with gamma in half precision; without rounding, logits differ by up to 8e-4.
        return gamma.half().to(gamma.dtype) * feed.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Image `(N, 3, H, W)`, H and W multiples of 32, to the feature maps of the first and of the second backbone.

        Raises:
            UserError: another image size, for which the sizes of the levels would not match.
        """
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise UserError(
                f"CBInternImage needs heights and widths that are multiples of 32, got {tuple(x.shape[-2:])}; "
                "set pad_size_divisor=32 in the data preprocessor"
            )
        leader, follower = self.cb_modules
        stem = x = leader.pos_drop(leader.patch_embed(x))
        first = []
        for level in leader.levels:
            feature = level(x)
            first.append(feature.permute(0, 3, 1, 2))
            x = level.downsample(feature)
        second, x = [], stem
        for index, level in enumerate(follower.levels):
            feature = level(x + self._feed(index, first))
            second.append(feature.permute(0, 3, 1, 2))
            x = level.downsample(feature)
        return tuple(first[i] for i in self.out_indices[0]), tuple(second[i] for i in self.out_indices[1])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for module in self.cb_modules:
            module.set_grad_checkpointing(enable)
