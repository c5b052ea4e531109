"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021) by CUDA kernels.

`internimage.ms_deform_attn` supports every device: without the kernels it uses `dcnv3`.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from .schema import alert_not_deterministic, promote

__all__ = ["backward", "ms_deform_attn"]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Per query and head, the weighted sum of bilinear samples at `points` locations in each of `levels` maps.

    One kernel for all levels, without synchronization, so a CUDA graph can capture it (with a list of shapes after one
    call outside the graph). Supports float64, float32, bfloat16 and float16; coordinates and sums are float32 for the
    half types. The gradient of `value` is not deterministic.

    Args:
        value: `(N, keys, heads, D)`, the levels one after the other, rows first; on a CUDA device.
        spatial_shapes: `(levels, 2)`, height and width: an int64 tensor on that device, or nested sequences of ints.
            If the areas in a tensor do not add up to the keys, the result is NaN, because the host cannot check them.
        sampling_locations: `(N, queries, heads, levels, points, 2)`, x and y; 0 and 1 are the edges of the map. Samples
            outside, or at NaN or infinity, are zero.
        attention_weights: `(N, queries, heads, levels, points)`.

    Returns:
        `(N, queries, heads * D)` in the dtype of `value`. Tensors of different dtypes are promoted to the widest.

    Raises:
        ops_dcnv3.BackendError: there is no CUDA backend for the tensors.
        ValueError: a sequence of shapes whose areas do not add up to the keys.
        RuntimeError: shapes, dtypes or devices that do not fit together; in backward, if
            `torch.use_deterministic_algorithms(True)` is set.
    """
    if backends.select("auto", value.device) != "cuda":
        reason = backends.load("cuda") if value.is_cuda else f"value is on {value.device}"
        raise backends.BackendError(f"ms_deform_attn needs the CUDA backend: {reason}")
    shapes = spatial_shapes if isinstance(spatial_shapes, Tensor) else _on_device(spatial_shapes, value)
    tensors = promote(value, sampling_locations, attention_weights)
    return torch.ops.ops_dcnv3.ms_deform_attn_forward(tensors[0], shapes, *tensors[1:]).to(value.dtype)


def _on_device(spatial_shapes: Sequence[Sequence[int]], value: Tensor) -> Tensor:
    shapes = tuple((int(height), int(width)) for height, width in spatial_shapes)
    keys = sum(height * width for height, width in shapes)
    if keys != value.shape[1]:
        raise ValueError(f"spatial_shapes {shapes} make {keys} keys, but value has {value.shape[1]}")
    copy = _copy_once.__wrapped__ if torch.compiler.is_compiling() else _copy_once
    return copy(shapes, value.device)


# A copy to a device synchronizes, and a CUDA graph cannot capture it. Cached forever: a captured graph reads this
# memory again.
@functools.cache
def _copy_once(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # autograd cannot save tensors made in inference mode
        return torch.tensor(shapes, dtype=torch.int64, device=device).view(-1, 2)


def backward(
    grad_output: Tensor, value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum of `ms_deform_attn(...) * grad_output` with respect to value, locations and weights.

    Raises:
        RuntimeError: `torch.use_deterministic_algorithms(True)` is set, or tensors that do not fit together.
    """
    if value.is_cuda:
        alert_not_deterministic("ms_deform_attn")
    tensors = value, spatial_shapes, sampling_locations, attention_weights
    return torch.ops.ops_dcnv3.ms_deform_attn_backward(grad_output, *tensors)
