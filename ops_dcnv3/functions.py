"""The operator with the names and argument orders of the original project."""

from torch import Tensor

from .functional import dcnv3

__all__ = ["DCNv3Function", "dcnv3_core_pytorch"]


def dcnv3_core_pytorch(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float,
    remove_center: bool = False,
    backend: str = "torch",
) -> Tensor:
    """The operator, by default in pure PyTorch; `group_channels` has no effect."""
    geometry = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    return dcnv3(input, offset, mask, *geometry, group, offset_scale, bool(remove_center), backend)


class DCNv3Function:
    """`DCNv3Function.apply(...)` of the original project; the mask is after the softmax."""

    @staticmethod
    def apply(input: Tensor, offset: Tensor, mask: Tensor, *scalars: float | bool) -> Tensor:
        """The scalars of `dcnv3_core_pytorch`, then optionally `im2col_step`, which is ignored, and `remove_center`."""
        return dcnv3_core_pytorch(input, offset, mask, *scalars[:11], *scalars[12:], backend="auto")
