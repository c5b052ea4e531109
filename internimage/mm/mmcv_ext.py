"""`mmcv._ext` without building mmcv: the compiled operators that these models need, from torchvision and ops_dcnv3.

mmcv-lite is mmcv without its compiled module, which `mmcv.ops` imports. This module replaces it, unless the compiled
one is installed. `nms` and `roi_align_*` (all that Mask R-CNN and Cascade need) call torchvision's kernels,
`bbox_overlaps`, for mmdet's analysis tools, mmcv's PyTorch code. mmcv calls
`ms_deform_attn_*` and `sigmoid_focal_loss_*` on a GPU only: the first are CUDA kernels of `ops_dcnv3`, or without its
CUDA library the DCNv3 operator (`ms_deform_attn.py`), the second PyTorch. mmdet3d's camera detectors also need
`nms_rotated` (`rotated.py`) and `modulated_deform_conv_*` (torchvision). Any other operator raises an error when it is
called. Arguments and results are those of mmcv 2.1's compiled functions: outputs are written in place.
"""

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor

from ops_dcnv3 import attention

from ..errors import UserError
from ..ms_deform_attn import has_kernel, ms_deform_attn
from . import rotated

__all__ = ["install", "speed_up_attention"]

_NAME = "mmcv._ext"


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Return the indices of the boxes `(N, 4)` that are kept, by falling score; `offset=1` counts pixels, not edges."""
    bboxes = bboxes.float()  # the CPU kernel has no half types
    if offset:
        # Intersection and areas of boxes whose right and bottom edges move by one are those of the pixel convention.
        bboxes = bboxes + bboxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(bboxes, scores.float(), iou_threshold)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Intersection over union (mode 0) or over the first area (1) of boxes `(N, 4)` and `(M, 4)`, into `ious`."""
    from mmcv.ops.bbox import _bbox_overlaps_cpu  # its own, in PyTorch, for any device

    ious.copy_(_bbox_overlaps_cpu(bboxes1, bboxes2, ("iou", "iof")[mode], aligned, offset))


def _need_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise UserError("roi_align with pool_mode='max' is not available here; use 'avg' or install the full mmcv")


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool `input` `(N, C, H, W)` over `rois` `(R, 5)` into `output` `(R, C, aligned_height, aligned_width)`."""
    _need_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torch.ops.torchvision.roi_align(input, rois.to(input), spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input, into `grad_input`."""
    _need_average(pool_mode)
    size = (aligned_height, aligned_width)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois.to(grad_output), spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    )


def _gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `function(*inputs)`, by a new forward pass: mmcv's autograd functions save inputs, not graphs."""
    with torch.enable_grad():
        inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        return torch.autograd.grad(function(*inputs), inputs, grad_output)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """`internimage.ms_deform_attn.ms_deform_attn`; `level_start_index` and `im2col_step` are not used."""
    return ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, into the three `grad_*` tensors."""
    if has_kernel(value):
        grads = attention.backward(grad_output, value, spatial_shapes, sampling_locations, attention_weights)
    else:
        grads = _gradients(
            lambda value, locations, weights: ms_deform_attn(value, spatial_shapes, locations, weights),
            (value, sampling_locations, attention_weights),
            grad_output,
        )
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.copy_(grad)


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss (Lin et al., 2017) `(N, C)` of logits; a target of C is background; `weight` `(C,)` or empty."""
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    logits = torch.where(positive, input, -input)  # the right answer's logit
    balance = torch.where(positive, input.new_tensor(alpha), input.new_tensor(1 - alpha))
    loss = -balance * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)
    return loss * F.pad(weight, (0, 1), value=1.0)[target, None] if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits `(N, C)` with classes `target` `(N,)` (C for background), into `output` `(N, C)`."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of every loss with respect to its own logit, into `grad_input` `(N, C)`."""
    loss_of = lambda logits: _focal_loss(logits, target, weight, gamma, alpha)  # noqa: E731
    grad_input.copy_(_gradients(loss_of, (input,), torch.ones_like(input))[0])


def nms_rotated(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, labels: Tensor, iou_threshold: float, multi: bool
) -> Tensor:
    """Return the indices of the boxes `(N, 5)`, or `(N, 6)` with labels, that are kept, by falling score."""
    boxes = dets[:, :5]
    if multi:  # boxes of two labels are moved apart
        apart = boxes[:, :2].abs().max() * 2 + boxes[:, 2:4].max() * 2
        boxes = torch.cat([boxes[:, :1] + dets[:, 5:] * apart, boxes[:, 1:]], 1)
    return rotated.nms_rotated(boxes, scores, iou_threshold)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """DCNv2 (Zhu et al., 2019) of `input` `(N, C, H, W)` into `output`; torchvision has mmcv's order of offsets."""
    tensors = input, weight, offset, mask, _bias(bias, weight)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *_convolution(settings)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **settings: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, into the `grad_*` tensors."""
    tensors = grad_output, input, weight, offset, mask, _bias(bias, weight)
    grads = torch.ops.torchvision._deform_conv2d_backward(*tensors, *_convolution(settings))
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        target.copy_(grad)
    if settings["with_bias"]:
        grad_bias.copy_(grad_output.sum((0, 2, 3)))


def _bias(bias: Tensor, weight: Tensor) -> Tensor:
    """The bias; zeros where mmcv passes an empty tensor."""
    return bias if len(bias) else weight.new_zeros(len(weight))


def _convolution(settings: dict[str, int]) -> tuple[int | bool, ...]:
    """mmcv's arguments of a convolution in torchvision's order, the last of which says that there is a mask."""
    steps = [settings[f"{name}_{side}"] for name in ("stride", "pad", "dilation") for side in "hw"]
    return *steps, settings["group"], settings["deformable_group"], True


_OPERATORS = {
    function.__name__: function
    for function in (
        nms,
        bbox_overlaps,
        roi_align_forward,
        roi_align_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        nms_rotated,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
    )
} | {
    # mmengine and mmdet print these in their logs.
    "get_compiler_version": lambda: "none (mmcv-lite)",
    "get_compiling_cuda_version": lambda: "none (mmcv-lite)",
}


class _Extension(ModuleType):
    """The replacement of `mmcv._ext`."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _OPERATORS:
            return _OPERATORS[name]

        def missing(*_: object, **__: object) -> None:
            raise UserError(
                f"the operator {name} belongs to mmcv's compiled module, which mmcv-lite lacks; "
                "install the full mmcv to use it"
            )

        missing.__name__ = name
        return missing


def install() -> bool:
    """Replace `mmcv._ext` unless the compiled one is installed; return whether the replacement is in use.

    Call it before `mmcv.ops` (and so mmdet or mmseg) is imported. A second call changes nothing.

    Raises:
        UserError: mmcv is not installed.
    """
    if _NAME in sys.modules:
        return isinstance(sys.modules[_NAME], _Extension)
    try:
        if importlib.util.find_spec(_NAME) is not None:
            return False
    except ModuleNotFoundError as error:
        raise UserError("mmcv is not installed; run pip install -e '.[mm]' in the repository of internimage") from error
    module = _Extension(_NAME, __doc__)
    module.__spec__ = importlib.machinery.ModuleSpec(_NAME, None)
    sys.modules[_NAME] = module
    return True


def speed_up_attention() -> None:
    """Make mmcv's `MultiScaleDeformableAttention` use `ms_deform_attn` where mmcv has no kernel, except in tracing."""
    from mmcv.ops import multi_scale_deform_attn as module

    original = module.multi_scale_deformable_attn_pytorch

    @functools.wraps(original, assigned=("__doc__",))
    def attend(*args: Tensor) -> Tensor:
        tracing = torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
        return (original if tracing else ms_deform_attn)(*args)

    module.multi_scale_deformable_attn_pytorch = attend
