"""Linear layers that use oneDNN for float32 on the CPU, and that do not save their activated input for backward.

PyTorch uses MKL for float32 matrix products; on processors that are not Intel's, MKL uses half of the vector width.
oneDNN, in the same PyTorch build, uses all of it. On a GPU the products are PyTorch's own. In compilers, exporters and
other program transformations these are ordinary linear layers.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .schema import constant_when_compiled, has_no_hooks, is_plain

__all__ = ["Linear", "PackedConv2d", "PackedLinear", "activated_linears", "can_fuse", "linear", "mlp", "onednn_works"]

_NO_GELU, _EXACT_GELU = "", "none"  # the values of nn.GELU.approximate, and one for no activation
_LEAST_WORK = 2**20  # multiply-adds; below, the overhead of the call (20 microseconds) exceeds the gain
_RECOMPUTING = ("cuda",)  # devices on which GELUs are recomputed in backward if the products are PyTorch's own


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str = _NO_GELU) -> Tensor:
    """`x @ weight.T + bias`, with an optional GELU; oneDNN reads transposed views without a copy."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], gelu)


@constant_when_compiled
def onednn_works() -> bool:
    """Whether this PyTorch has the oneDNN operator and its results are correct."""
    return _onednn_works()


@functools.cache
def _onednn_works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.eye(3, 4), torch.arange(8.0).view(2, 4), torch.ones(2)
    try:
        return torch.allclose(_matmul(x, weight, bias, _EXACT_GELU), F.gelu(F.linear(x, weight, bias))) and torch.equal(
            _matmul(x.t(), weight[:, :3]), F.linear(x.t(), weight[:, :3])
        )
    except (AttributeError, RuntimeError):  # a private operator, which may change or disappear
        return False


# Compilers would also use MKL; for them the oneDNN product is an opaque operator.
_library = torch.library.Library("ops_dcnv3", "FRAGMENT")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.impl("linear", _matmul, "CPU")


def _compiled_setup(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _compiled_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows, needs = grad.flatten(0, -2), ctx.needs_input_grad
    return (
        torch.ops.ops_dcnv3.linear(grad, weight.t(), None) if needs[0] else None,
        torch.ops.ops_dcnv3.linear(rows.t(), x.flatten(0, -2).t(), None) if needs[1] else None,
        rows.sum(0) if needs[2] else None,
    )


torch.library.register_fake(
    "ops_dcnv3::linear", lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]), lib=_library
)
torch.library.register_autograd("ops_dcnv3::linear", _compiled_backward, setup_context=_compiled_setup, lib=_library)


def _product(x: Tensor, *parameters: Tensor | None) -> Callable:
    """The matrix product for linear layers of `x`: `F.linear`, `_matmul`, or the operator for compilers.

    `parameters`: weight and bias of each layer.
    """
    if not x.is_cpu or torch.compiler.is_exporting():  # where a question about the size would bound what is exported
        return F.linear
    suits = (
        x.dim() > 1
        and x.dtype == torch.float32
        and all(w.dtype == torch.float32 and x.numel() * w.shape[0] >= _LEAST_WORK for w in parameters[::2])
        and not torch.is_autocast_enabled("cpu")
    )
    if suits and torch.compiler.is_compiling():
        return torch.ops.ops_dcnv3.linear if onednn_works() else F.linear
    return _matmul if suits and is_plain(x, *parameters) and onednn_works() else F.linear


def _recomputes(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether layers with PyTorch's own product may save only `x` and recompute its GELU in backward."""
    if not (x.device.type in _RECOMPUTING and x.dim() > 1 and is_plain(x, *parameters)):
        return False
    types = {x.dtype, *(weight.dtype for weight in parameters[::2])}
    # Autocast does not cast float64; without autocast F.linear raises an error for mixed dtypes.
    return torch.float64 not in types if torch.is_autocast_enabled(x.device.type) else len(types) == 1


class _ActivatedLinears(torch.autograd.Function):
    """Several linear layers of one activated input; saves only the input before the activation.

    `product` is `_matmul` or `F.linear`. The parameters have one dtype; that of `x` may be wider, such as the output of
    LayerNorm under autocast.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gelu: str, product: Callable, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = parameters[::2], parameters[1::2]
        ctx.gelu, ctx.product = gelu, product
        ctx.save_for_backward(x, *weights)
        activated = _activated(x, gelu, weights[0].dtype)
        return tuple(product(activated, weight, bias) for weight, bias in zip(weights, biases))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        flat = _activated(x, ctx.gelu, weights[0].dtype).flatten(0, -2)
        grad_x, grad_parameters = None, []
        for index, (grad, weight) in enumerate(zip(grads, weights)):
            rows = grad.flatten(0, -2)
            needs_weight, needs_bias = ctx.needs_input_grad[3 + 2 * index : 5 + 2 * index]
            grad_parameters.append(ctx.product(rows.t(), flat.t()) if needs_weight else None)
            grad_parameters.append(rows.sum(0) if needs_bias else None)
            if not ctx.needs_input_grad[0]:
                continue
            if grad_x is None:
                grad_x = ctx.product(rows, weight.t())
            elif ctx.product is F.linear:
                grad_x.addmm_(rows, weight)  # the sum is part of the product
            else:
                grad_x.add_(ctx.product(rows, weight.t()))
        if grad_x is not None:
            grad_x = grad_x.view_as(x)
            if ctx.gelu:
                grad_x = torch.ops.aten.gelu_backward(grad_x, x, approximate=ctx.gelu)  # in the wider type
        return grad_x, None, None, *grad_parameters


def _activated(x: Tensor, gelu: str, dtype: torch.dtype) -> Tensor:
    return F.gelu(x, approximate=gelu).to(dtype) if gelu else x


def _recomputed(x: Tensor, gelu: str, *parameters: Tensor | None) -> tuple[Tensor, ...]:
    """Linear layers of `gelu(x)` by PyTorch's own product, which save `x` and, like `F.linear`, the weights."""
    if torch.is_autocast_enabled(x.device.type):
        # Cast outside of the function: inside, autocast would cache weights without autograd history.
        dtype = torch.get_autocast_dtype(x.device.type)
        parameters = [tensor if tensor is None else tensor.to(dtype) for tensor in parameters]
    return _ActivatedLinears.apply(x, gelu, F.linear, *parameters)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _linears(x: Tensor, gelu: str, *parameters: Tensor | None) -> tuple[Tensor, ...]:
    product = _product(x, *parameters)
    if _needs_grad(x, *parameters):
        if product is _matmul:
            return _ActivatedLinears.apply(x, gelu, product, *parameters)
        if gelu and product is F.linear and _recomputes(x, *parameters):
            return _recomputed(x, gelu, *parameters)
    activated = F.gelu(x, approximate=gelu) if gelu else x
    return tuple(product(activated, weight, bias) for weight, bias in zip(parameters[::2], parameters[1::2]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: `(..., K)` times `(N, K)` transposed, to `(..., N)`."""
    return _linears(x, _NO_GELU, weight, bias)[0] if x.is_cpu else F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` that uses the faster of PyTorch's two CPU libraries."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _Packed(nn.Module):
    """Stores a second copy of the weight in oneDNN's layout, made at first use."""

    _packed = _packed_from = None

    def _packed_weight(self, pack: Callable[[Tensor], Tensor]) -> Tensor:
        weight = self.weight
        current = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if current != self._packed_from:  # at first use, and after other weights were loaded
            self._packed, self._packed_from = pack(weight.detach()), current
        return self._packed

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None, "_packed_from": None}  # cannot be copied or pickled


class PackedLinear(_Packed, nn.Linear):
    """A linear layer for inference with a packed weight, and an optional GELU on its result.

    Args:
        layer: its weight and bias are shared.
        activation: GELU applied to the result; None for none.
    """

    def __init__(self, layer: nn.Linear, activation: nn.GELU | None = None) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.gelu = activation.approximate if activation is not None else _NO_GELU

    def forward(self, input: Tensor) -> Tensor:
        parameters = self.weight, self.bias
        if _product(input, *parameters) is not _matmul or _needs_grad(input, *parameters):
            x = linear(input, self.weight, self.bias)
            return F.gelu(x, approximate=self.gelu) if self.gelu else x
        weight = self._packed_weight(lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight, None))
        return _matmul(input, weight, self.bias, self.gelu)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gelu={bool(self.gelu)}"


class PackedConv2d(_Packed, nn.Conv2d):
    """A zero-padded convolution for inference with a packed weight. Weight and bias of `layer` are shared."""

    def __init__(self, layer: nn.Conv2d) -> None:
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        super().__init__(layer.in_channels, layer.out_channels, *sizes, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.is_cpu and input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        parameters = self.weight, self.bias
        if not channels_last or _product(input, *parameters) is not _matmul or _needs_grad(input, *parameters):
            return super().forward(input)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        weight = self._packed_weight(
            lambda weight: torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(input.shape))
        )
        return torch.ops.mkldnn._convolution_pointwise(input, weight, self.bias, *geometry, "none", [], "")


def can_fuse(activation: nn.Module, *layers: nn.Module) -> bool:
    """Whether the functions below may replace calls of these modules: their types are ours, and they have no hooks."""
    are_ours = all(type(layer) is Linear for layer in layers)
    return type(activation) is nn.GELU and are_ours and has_no_hooks(activation, *layers)


def activated_linears(x: Tensor, activation: nn.GELU, *parameters: Tensor | None) -> tuple[Tensor, ...]:
    """Linear layers that share one activated input `(..., K)`, which is recomputed in backward instead of saved.

    Args:
        x: input of the activation.
        activation: the GELU.
        parameters: `weight, bias` of each layer.

    Returns:
        One `(..., N)` for each layer.
    """
    return _linears(x, activation.approximate, *parameters)


def mlp(
    x: Tensor, activation: nn.GELU, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None
) -> Tensor:
    """Linear, GELU, linear on `(..., K)`. Without gradients the GELU is part of the first product."""
    if _product(x, weight1, bias1) is _matmul and not _needs_grad(x, weight1, bias1, weight2, bias2):
        return linear(_matmul(x, weight1, bias1, activation.approximate), weight2, bias2)
    return activated_linears(linear(x, weight1, bias1), activation, weight2, bias2)[0]
