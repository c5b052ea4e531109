"""FlashInternImage: InternImage with DCNv4 as its core operator.

Efficient Deformable ConvNets (Xiong et al., CVPR 2024); original project https://github.com/OpenGVLab/DCNv4 (MIT
licence). Names are the released ones.
"""

from torch import nn

import ops_dcnv3

from .backbone import InternImage
from .layers import MLPLayer

__all__ = ["FlashInternImage"]


class FlashInternImage(InternImage):
    """`InternImage` with DCNv4.

    Args:
        core_op: `DCNv4`.
        dcn_output_bias: bias of the operator's output projection.
        mlp_fc2_bias: bias of the MLPs' second linear layer.
        kwargs: as `InternImage`; with `dw_kernel_size=None` there is no depthwise branch, and
            `center_feature_scale` is not supported.

    Raises:
        ValueError: arguments that do not fit together.
    """

    def __init__(
        self, core_op: str = "DCNv4", *, dcn_output_bias: bool = False, mlp_fc2_bias: bool = False, **kwargs
    ) -> None:
        self._dcn_output_bias = dcn_output_bias
        self._mlp_fc2_bias = mlp_fc2_bias
        super().__init__(core_op=core_op, **kwargs)

    def _build_dcn(self, *, center_feature_scale: bool, act_layer: str, norm_layer: str, **kwargs) -> nn.Module:
        if self.core_op != "DCNv4":
            raise ValueError(f"core_op of FlashInternImage must be 'DCNv4'; got {self.core_op!r}")
        if center_feature_scale:
            raise ValueError("center_feature_scale belongs to DCNv3; FlashInternImage has none")
        return ops_dcnv3.DCNv4(output_bias=self._dcn_output_bias, **kwargs)  # no norm, no activation

    def _build_mlp(self, *args) -> nn.Module:
        return MLPLayer(*args, fc2_bias=self._mlp_fc2_bias)
