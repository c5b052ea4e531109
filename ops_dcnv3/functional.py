"""The DCNv3 operator: one public function over the operators `ops_dcnv3::forward` and `ops_dcnv3::backward`.

The schemas, the shape rules, autograd and autocast are defined here, once; compiled libraries add kernels for their
device, and the `torch` backend does without these operators. InternImage (Wang et al., CVPR 2023, section 3.1).
"""

import functools
import warnings

import torch
from torch import Tensor

from . import backends
from .reference import Geometry, gather_core, grid_sample_core

__all__ = ["dcnv3"]

_GEOMETRY = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, "
    "int dilation_w, int groups, float offset_scale, bool remove_center, bool mask_is_logits"
)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_library = torch.library.Library("ops_dcnv3", "DEF")
_library.define(
    f"forward(Tensor input, Tensor offset, Tensor mask, {_GEOMETRY}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
_library.define(
    f"backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, {_GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_bitwise),  # on CUDA: the order of atomic additions
)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    backend: str = "auto",
    mask_is_logits: bool = False,
) -> Tensor:
    """Deformable convolution v3: per group, a mask-weighted sum of bilinear samples at deformed kernel points.

    With `P = Kh * Kw - remove_center` points, `G` groups of `D` channels, and per-axis output size
    `(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1`. Point `k` runs over the kernel column by column.
    Samples outside the input, or where a coordinate is not finite, are zero. Coordinates and sums are float32 for half
    types, the input's type otherwise.

    Args:
        input: `(N, H, W, G*D)`; float64, float32, bfloat16 or float16; need not be contiguous.
        offset: `(N, Ho, Wo, G*P*2)`, `(x, y)` pairs in pixels, multiplied by `offset_scale`.
        mask: `(N, Ho, Wo, G*P)`, the weights of the points.
        kernel_size, stride, padding, dilation: an int, or `(height, width)`.
        groups: `G`; must divide the channels.
        offset_scale: factor on the kernel's extent and on the offsets.
        remove_center: leave out the kernel's central point; needs odd kernel sizes.
        backend: `auto`, `cuda`, `triton`, `cpu` or `torch` (see `python -m ops_dcnv3`). While `torch.onnx.export`
            runs, and under torch.func transforms and forward-mode differentiation, `auto` is `torch`, which consists of
            standard operators.
        mask_is_logits: apply a softmax over the `P` points of each group to `mask` first.

    Returns:
        `(N, Ho, Wo, G*D)`. Tensors of different types are promoted to the widest.

    Raises:
        ValueError: arguments or shapes that do not fit together.
        TypeError: a tensor that is not floating point.
        ops_dcnv3.BackendError: the backend asked for cannot run here.
        RuntimeError: a compiled backend asked for by name under a transform of torch.func.
    """
    arguments = kernel_size, stride, padding, dilation, groups, offset_scale, remove_center, mask_is_logits
    # Compilers trace the plain functions; otherwise an answer is remembered, which saves 3 microseconds a call.
    remember = not torch.compiler.is_compiling() and type(input) is Tensor and list not in map(type, arguments)
    geometry = (_geometry if remember else _geometry.__wrapped__)(*arguments)
    expected = (_expected_shapes if remember else _expected_shapes.__wrapped__)(input.shape, geometry)
    _check(input, offset, mask, expected, geometry)
    if not input.dtype == offset.dtype == mask.dtype:
        input, offset, mask = promote(input, offset, mask)
    transformed = not torch.compiler.is_compiling() and _is_transformed(input, offset, mask)
    plain = backend == "auto" and (transformed or _onnx_is_written())
    chosen = backends.select("torch" if plain else backend, input.device)
    if chosen == "torch":
        # Compilers fuse the gathers, and every transform knows them; exporters know grid_sample.
        gather = transformed or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())
        return (gather_core if gather else grid_sample_core)(input, offset, mask, geometry)
    if transformed:
        raise RuntimeError(
            f"backend {chosen!r} knows neither forward-mode derivatives nor torch.func transforms; "
            "use backend='torch', or 'auto', which does so by itself"
        )
    if chosen == "triton":
        return torch.ops.ops_dcnv3.triton_forward(input, offset, mask, *geometry)
    if torch.compiler.is_compiling() or _tracks_gradients(input, offset, mask):
        return torch.ops.ops_dcnv3.forward.default(input, offset, mask, *geometry)
    # Autograd's part in Python takes 4 microseconds, a tenth of the time of a small feature map.
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.ops_dcnv3.forward.default(input, offset, mask, *geometry)


def _onnx_is_written() -> bool:
    return (torch.compiler.is_exporting() or torch.jit.is_tracing()) and torch.onnx.is_in_onnx_export()


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether forward-mode differentiation or a transform of torch.func (grad, jvp, vmap) is at work on these tensors.

    The compiled operators have rules for neither: they would drop tangents without a word.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _tracks_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _pair(value: int | tuple[int, int], name: str, minimum: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(item, int) and item >= minimum for item in pair):
        raise ValueError(f"{name} must be an int or a pair of ints, each at least {minimum}; got {value!r}")
    return pair


@functools.lru_cache(typed=True)
def _geometry(
    kernel_size, stride, padding, dilation, groups: int, offset_scale: float, remove_center: bool, mask_is_logits: bool
) -> Geometry:
    geometry = Geometry(
        *_pair(kernel_size, "kernel_size", 1),
        *_pair(stride, "stride", 1),
        *_pair(padding, "padding", 0),
        *_pair(dilation, "dilation", 1),
        groups,
        float(offset_scale),
        bool(remove_center),
        bool(mask_is_logits),
    )
    if geometry.remove_center and not (geometry.kernel_h % 2 and geometry.kernel_w % 2):
        raise ValueError(f"remove_center needs odd kernel sizes; got {geometry.kernel_h}x{geometry.kernel_w}")
    if geometry.points == 0:
        raise ValueError("remove_center with a 1x1 kernel leaves no point to sample")
    extent = max(geometry.dilation_h * geometry.kernel_h, geometry.dilation_w * geometry.kernel_w)
    if not extent * max(abs(geometry.offset_scale), 1.0) < 2**30:
        raise ValueError(
            f"offset_scale must be finite, and kernel_size * dilation * offset_scale below 2^30 pixels; "
            f"got offset_scale {geometry.offset_scale} for an extent of {extent} pixels"
        )
    return geometry


@functools.lru_cache
def _expected_shapes(shape: tuple[int, ...], geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of offset and mask that belong to an input of this shape."""
    if len(shape) != 4:
        raise ValueError(f"input must have 4 dimensions, channels last; got shape {tuple(shape)}")
    batch, height, width, channels = shape
    if geometry.groups < 1 or channels % geometry.groups:
        raise ValueError(f"groups must divide the channels of input; got {geometry.groups} groups, {channels} channels")
    out_h, out_w = geometry.output_size(height, width)
    if height < 1 or width < 1 or out_h < 1 or out_w < 1:
        raise ValueError(
            f"input of {height}x{width} pixels gives an output of {out_h}x{out_w}; enlarge the input or the padding"
        )
    points = geometry.groups * geometry.points
    return (batch, out_h, out_w, points * 2), (batch, out_h, out_w, points)


def _check(input: Tensor, offset: Tensor, mask: Tensor, expected: tuple, geometry: Geometry) -> None:
    device = input.device
    for name, tensor in (("input", input), ("offset", offset), ("mask", mask)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16; got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but input is on {device}; move them together")
    for name, tensor, shape in (("offset", offset, expected[0]), ("mask", mask, expected[1])):
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for input {tuple(input.shape)}, {geometry.groups} groups and "
                f"{geometry.points} points; got {tuple(tensor.shape)}"
            )


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring tensors to the widest of their types (autocast leaves a mixture of half and float32)."""
    widest = tensors[0].dtype
    for tensor in tensors[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(tensor.to(widest) for tensor in tensors)


def _forward_fake(input: Tensor, offset: Tensor, mask: Tensor, *geometry) -> Tensor:
    return input.new_empty(*offset.shape[:3], input.shape[3])


def _backward_fake(grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *geometry):
    return input.new_empty(input.shape), offset.new_empty(offset.shape), mask.new_empty(mask.shape)


def _setup_context(ctx, inputs, output) -> None:
    input, offset, mask, *ctx.geometry = inputs
    ctx.save_for_backward(input, offset, mask)


def alert_not_deterministic(operator: str) -> None:
    """Do what `torch.use_deterministic_algorithms` asks of an operator that has no deterministic implementation.

    Raises:
        RuntimeError: under that setting, unless `warn_only` turns the error into a warning.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"{operator} does not have a deterministic implementation on CUDA, but you set "
        "torch.use_deterministic_algorithms(True); pass warn_only=True to it, or compute on the CPU"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _autograd(ctx, grad_output: Tensor):
    if grad_output.device.type == "cuda":
        alert_not_deterministic("the backward pass of dcnv3")
    grads = torch.ops.ops_dcnv3.backward(grad_output, *ctx.saved_tensors, *ctx.geometry)
    return *grads, *(None for _ in ctx.geometry)


def _no_second_derivative(ctx, *grads: Tensor):
    raise RuntimeError("dcnv3 can be differentiated once: it has no second derivative; omit create_graph=True")


def _autocast(device_type: str):
    """Autocast rule: promote to the widest type present. Kernels sample and sum in float32 or better whatever it is."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type}")

    def forward(input: Tensor, offset: Tensor, mask: Tensor, *geometry) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return torch.ops.ops_dcnv3.forward(*promote(input, offset, mask), *geometry)

    return forward


torch.library.register_fake("ops_dcnv3::forward", _forward_fake, lib=_library)
torch.library.register_fake("ops_dcnv3::backward", _backward_fake, lib=_library)
torch.library.register_autograd("ops_dcnv3::forward", _autograd, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("ops_dcnv3::backward", _no_second_derivative, lib=_library)
for _device_type in ("CPU", "CUDA"):
    _library.impl("forward", _autocast(_device_type), f"Autocast{_device_type}")
