"""Size of a model: parameters, and FLOPs by the convention of the published tables.

The convention counts a multiply-add of convolutions and linear layers as one, five operations per sampled point and
channel of the deformable operator, and nothing else. A model on the meta device needs no memory and no computation.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from ops_dcnv3 import DCNv3, DCNv4

from .meta_former import logits_of_images

__all__ = ["count_flops", "count_parameters", "describe_size", "flops"]

_COUNTED = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


def count_parameters(model: nn.Module) -> int:
    """Number of elements of all parameters, without buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe_size(parameters: int, operations: int) -> str:
    """Both numbers in millions or billions, such as `29.95 M parameters, 4.9 GFLOPs`."""
    size = f"{operations / 1e9:.1f} G" if operations >= 1e9 else f"{operations / 1e6:.1f} M"
    return f"{parameters / 1e6:.2f} M parameters, {size}FLOPs"


@torch.no_grad()
def count_flops(model: nn.Module, *inputs: object, forward: Callable | None = None) -> int:
    """FLOPs of `model(*inputs)` by the published convention; the model may be on the meta device.

    The model is run once, in evaluation mode. `forward`, if given, is called instead of `model`.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports tabulate

    operator = 0

    def count_operator(layer: DCNv3 | DCNv4, _: tuple, output: torch.Tensor) -> None:
        nonlocal operator
        points = layer.kernel_size**2 - int(layer.remove_center)
        operator += 5 * math.prod(output.shape[:-1]) * layer.channels * points

    hooks = [
        layer.register_forward_hook(count_operator) for layer in model.modules() if isinstance(layer, DCNv3 | DCNv4)
    ]
    training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            (forward or model)(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    counts = counter.get_flop_counts()["Global"]
    return operator + sum(counts.get(op, 0) for op in _COUNTED) // 2  # torch counts multiply and add separately


def flops(model: nn.Module, size: int | tuple[int, int] = 224) -> int:
    """FLOPs of a model for one image, by the convention of the published tables.

    Use this instead of counters that look for torch's own layers, such as thop and ptflops: they leave out the linear
    layers and the deformable operator.

    Args:
        model: a classifier or backbone, also one on the meta device, which takes images `(N, C, H, W)`.
        size: height and width in pixels, or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    weight = next(model.parameters())
    stem = getattr(model, "patch_embed", None)
    channels = stem.conv1.in_channels if stem is not None else 3
    image = torch.empty(1, channels, height, width, device=weight.device, dtype=weight.dtype)
    return count_flops(model, image, forward=lambda images: logits_of_images(model, images))
