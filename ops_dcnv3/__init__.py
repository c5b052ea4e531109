"""DCNv3, the deformable convolution of InternImage (Wang et al., CVPR 2023), for CPUs, GPUs and other devices."""

from .attention import ms_deform_attn
from .backends import BackendError
from .conv2d import DCNv3Conv2d
from .functional import dcnv3, dcnv4
from .modules import DCNv3, DCNv3_pytorch, DCNv4

__all__ = ["BackendError", "DCNv3", "DCNv3Conv2d", "DCNv3_pytorch", "DCNv4", "dcnv3", "dcnv4", "ms_deform_attn"]
