"""The import path, names and argument orders of the operator in code written for the original project."""

from torch import Tensor

from .functional import dcnv3

__all__ = ["DCNv3Function", "dcnv3_core_pytorch"]


class DCNv3Function:
    """`DCNv3Function.apply(...)` of the original project, with the mask already softmaxed."""

    @staticmethod
    def apply(
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
        im2col_step: int | None = None,
        remove_center: bool = False,
    ) -> Tensor:
        """As `ops_dcnv3.dcnv3`; `group_channels` follows from the input and `im2col_step` has no meaning here."""
        return dcnv3(
            input,
            offset,
            mask,
            (kernel_h, kernel_w),
            (stride_h, stride_w),
            (pad_h, pad_w),
            (dilation_h, dilation_w),
            group,
            offset_scale,
            bool(remove_center),
        )


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
) -> Tensor:
    """The operator on the pure-PyTorch backend."""
    geometry = (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    return dcnv3(input, offset, mask, *geometry, group, offset_scale, bool(remove_center), backend="torch")
