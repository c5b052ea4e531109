"""The operators of this package in `torch.library`: schemas, output shapes, autograd, autocast, determinism.

`forward` and `backward` are DCNv3; `ms_deform_attn_forward` and `ms_deform_attn_backward` are multi-scale deformable
attention. Compiled libraries add the kernels of their device. This module imports torch only.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "alert_not_deterministic",
    "constant_when_compiled",
    "has_no_hooks",
    "is_plain",
    "is_transformed",
    "promote",
    "save_inputs",
]

_GEOMETRY = (
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, "
    "int dilation_w, int groups, float offset_scale, bool remove_center, bool mask_is_logits"
)
_DCNV3 = f"Tensor input, Tensor offset, Tensor mask, {_GEOMETRY}"
_ATTENTION = "Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights"

_library = torch.library.Library("ops_dcnv3", "DEF")


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert floating-point tensors to the widest of their dtypes; other tensors (shapes) do not change."""
    floats = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    widest = floats[0]
    for dtype in floats[1:]:
        widest = torch.promote_types(widest, dtype)
    return tuple(tensor.to(widest) if tensor.is_floating_point() else tensor for tensor in tensors)


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether a transform of torch.func (grad, jvp, vmap) is active, or a tensor has a forward-mode tangent.

    The compiled operators support neither: they would drop tangents silently.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def is_plain(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether only autograd and autocast intercept operations on these tensors.

    False in compilers, exporters, tracers, dispatch modes (fake tensors, FLOP counting) and function transforms, and
    for tensor subclasses, which support only PyTorch's operators.
    """
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_scripting() or torch.jit.is_tracing())
        and type(x) is Tensor
        and all(parameter is None or type(parameter) in (nn.Parameter, Tensor) for parameter in parameters)
        and torch._C._len_torch_dispatch_stack() == 0
        and not is_transformed(x, *parameters)
    )


def has_no_hooks(*modules: nn.Module) -> bool:
    """Whether these modules have no hooks, so that a fused call may replace theirs."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return False
    return True


def constant_when_compiled(function: Callable) -> Callable:
    """Like `torch.compiler.assume_constant_result`: compilers call `function` once and use its result as a constant.

    That function imports torch._dynamo, which takes as long as importing torch, and then only sets this attribute.
    """
    function._dynamo_marked_constant = True
    return function


def alert_not_deterministic(operator: str) -> None:
    """Raise or warn if `torch.use_deterministic_algorithms` is set: the CUDA backward pass uses atomic additions.

    Raises:
        RuntimeError: the setting is on, without `warn_only`.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        f"the backward pass of {operator} does not have a deterministic implementation on CUDA, but you set "
        "torch.use_deterministic_algorithms(True); pass warn_only=True to it, or compute on the CPU"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _register(operator: str, prefix: str, arguments: str, forward_fake: Callable, backward_fake: Callable) -> None:
    """Register the operators `<prefix>forward(arguments)` and `<prefix>backward(grad_output, arguments)`.

    Autograd can differentiate once. Under autocast the tensors are promoted to the widest of their dtypes; the kernels
    always sum in float32 or float64.
    """
    pt2 = torch.Tag.pt2_compliant_tag
    _library.define(f"{prefix}forward({arguments}) -> Tensor", tags=(pt2,))
    _library.define(
        f"{prefix}backward(Tensor grad_output, {arguments}) -> (Tensor, Tensor, Tensor)",
        tags=(pt2, torch.Tag.nondeterministic_bitwise),  # on CUDA: the order of atomic additions
    )
    forward_name, backward_name = f"ops_dcnv3::{prefix}forward", f"ops_dcnv3::{prefix}backward"
    forward = getattr(torch.ops.ops_dcnv3, f"{prefix}forward")
    backward = getattr(torch.ops.ops_dcnv3, f"{prefix}backward")

    def differentiate(ctx, grad_output: Tensor):
        if grad_output.is_cuda:
            alert_not_deterministic(operator)
        tensors = ctx.saved_tensors
        grads = iter(backward(grad_output, *tensors, *ctx.constants))
        # An integer tensor (the sizes of the levels) has no gradient.
        of_tensors = [next(grads) if tensor.is_floating_point() else None for tensor in tensors]
        return *of_tensors, *(None for _ in ctx.constants)

    def no_second_derivative(ctx, *grads: Tensor):
        raise RuntimeError(
            f"{operator} can be differentiated once: it has no second derivative; omit create_graph=True"
        )

    def autocast(device_type: str) -> Callable:
        key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type}"))

        def promoted(*inputs):
            tensors, constants = _split(inputs)
            with torch._C._ExcludeDispatchKeyGuard(key):
                return forward(*promote(*tensors), *constants)

        return promoted

    torch.library.register_fake(forward_name, forward_fake, lib=_library)
    torch.library.register_fake(backward_name, backward_fake, lib=_library)
    torch.library.register_autograd(forward_name, differentiate, setup_context=save_inputs, lib=_library)
    torch.library.register_autograd(backward_name, no_second_derivative, lib=_library)
    for device_type in ("CPU", "CUDA"):
        _library.impl(f"{prefix}forward", autocast(device_type), f"Autocast{device_type}")


def _split(inputs: tuple) -> tuple[list[Tensor], list]:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    return tensors, list(inputs[len(tensors) :])


def save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    """The `setup_context` of the operators: keep the tensors, which come first, and the constants."""
    tensors, ctx.constants = _split(inputs)
    ctx.save_for_backward(*tensors)


def _forward_fake(input: Tensor, offset: Tensor, mask: Tensor, *geometry) -> Tensor:
    return input.new_empty(*offset.shape[:3], input.shape[3])


def _backward_fake(grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *geometry):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (input, offset, mask))


def _attention_forward_fake(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _attention_backward_fake(grad_output: Tensor, value: Tensor, spatial_shapes: Tensor, *others: Tensor):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, *others))


_register("dcnv3", "", _DCNV3, _forward_fake, _backward_fake)
_register("ms_deform_attn", "ms_deform_attn_", _ATTENTION, _attention_forward_fake, _attention_backward_fake)
