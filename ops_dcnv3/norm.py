"""LayerNorm on a GPU, fused with the adjacent operations: GELU, or residual sum, layer scale and drop path.

In eager mode every operation of a network is a kernel, and PyTorch's LayerNorm uses a thread block for every row. Here
`(..., C)` activations need one kernel for each of

- `layer_norm`: `LN(x)`;
- `norm_gelu`: `gelu(LN(x + pre_bias))`, the depthwise branch of the operator after its convolution;
- `post_norm`: `residual + keep * gamma * LN(x)`;
- `pre_norm`: `sum = residual + keep * gamma * x` and `LN(sum)`.

forward and backward, with the dtypes of autocast. They need the compiled CUDA library and a plain call, which `serves`
checks. Compilers fuse the ordinary modules themselves, and exporters support only these.

`x` and `residual` are `(N, ..., C)`; `norm` gives weight, bias and eps; `gamma` `(C,)` is the layer scale; `keep` has
one number for each of the N images, from `drop_path_factors`. The result of a norm `as_input` is read by linear layers
and convolutions only: under autocast it has their dtype, to which they would cast it, instead of float32.
"""

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import backends
from .schema import has_no_hooks, is_plain

__all__ = [
    "LayerNorm",
    "drop_path_factors",
    "has_no_hooks",
    "is_candidate",
    "layer_norm_in",
    "layer_norm",
    "norm_gelu",
    "post_norm",
    "pre_norm",
    "serves",
]

_DEVICE, _IS_OURS = "cuda", "is_cuda"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN, _GELU, _POST, _PRE = range(4)  # the forms of csrc/cuda/norm_cuda.h
_MOST_CHANNELS = 4096

_library = torch.library.Library("ops_dcnv3", "FRAGMENT")
_library.define(
    "norm_forward(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor? extra, Tensor? keep, float eps, "
    "int form, ScalarType out_dtype, ScalarType sum_dtype, bool with_stats) -> Tensor[]"
)
_library.define(
    "norm_backward(Tensor grad, Tensor? grad_sum, Tensor source, Tensor stats, Tensor weight, Tensor bias, "
    "Tensor? extra, Tensor? keep, Tensor? branch, int form, ScalarType x_dtype, bool with_parameters) -> Tensor[]"
)


def _forward_fake(x, residual, weight, bias, extra, keep, eps, form, out_dtype, sum_dtype, with_stats):
    results = [x.new_empty(x.shape, dtype=out_dtype)]
    if form == _PRE:
        results.append(x.new_empty(x.shape, dtype=sum_dtype))
    if with_stats:
        results.append(x.new_empty((2, x.numel() // x.shape[-1]), dtype=torch.float32))
    return results


def _backward_fake(
    grad, grad_sum, source, stats, weight, bias, extra, keep, branch, form, x_dtype, with_parameters
) -> list[Tensor]:
    results = [source.new_empty(source.shape, dtype=x_dtype)]
    if with_parameters:
        results += [tensor.new_empty(tensor.shape) for tensor in (weight, bias, extra) if tensor is not None]
    if form == _PRE and (extra is not None or keep is not None or x_dtype != source.dtype):
        results.append(source.new_empty(source.shape))
    return results


torch.library.register_fake("ops_dcnv3::norm_forward", _forward_fake, lib=_library)
torch.library.register_fake("ops_dcnv3::norm_backward", _backward_fake, lib=_library)


class _Norm(torch.autograd.Function):
    """The operators above for autograd. Saves the normalised tensor, two numbers per row, and the branch if scaled."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, extra, keep, eps, form, out_dtype, sum_dtype):
        arguments = (x, residual, weight, bias, extra, keep, eps, form, out_dtype, sum_dtype, True)
        out, *sums, stats = torch.ops.ops_dcnv3.norm_forward.default(*arguments)
        ctx.form, ctx.x_dtype = form, x.dtype
        ctx.set_materialize_grads(False)
        branch = x if form == _PRE and extra is not None else None
        ctx.save_for_backward(sums[0] if sums else x, stats, weight, bias, extra, keep, branch)
        return (out, *sums) if sums else out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_sum=None):
        source, stats, weight, bias, extra, keep, branch = ctx.saved_tensors
        if grad is None:
            if grad_sum is None:
                return (None,) * 10
            grad = torch.zeros_like(source)
        needs = ctx.needs_input_grad
        with_parameters = needs[2] or needs[3] or needs[4]
        arguments = (grad, grad_sum, source, stats, weight, bias, extra, keep, branch)
        results = torch.ops.ops_dcnv3.norm_backward.default(*arguments, ctx.form, ctx.x_dtype, with_parameters)
        grad_x, grad_residual = results[0], None
        if ctx.form == _PRE:
            expected = 1 + (2 + (extra is not None)) * with_parameters
            grad_residual = results[expected] if len(results) > expected else grad_x
        elif ctx.form == _POST:
            grad_residual = grad
        parameters = results[1:4] if with_parameters else (None, None)
        grad_extra = parameters[2] if extra is not None and with_parameters else None
        return grad_x, grad_residual, parameters[0], parameters[1], grad_extra, None, None, None, None, None


def _apply(x, residual, norm: nn.LayerNorm, extra, keep, form: int, out_dtype: torch.dtype, sum_dtype: torch.dtype):
    arguments = (x, residual, norm.weight, norm.bias, extra, keep, norm.eps, form, out_dtype, sum_dtype)
    if torch.is_grad_enabled():
        for tensor in arguments[:5]:
            if tensor is not None and tensor.requires_grad:
                return _Norm.apply(*arguments)
    results = torch.ops.ops_dcnv3.norm_forward.default(*arguments, False)
    return results if form == _PRE else results[0]


def _autocast_dtype() -> torch.dtype | None:
    """The half dtype of matrix products under autocast; None without autocast."""
    return torch.get_autocast_dtype(_DEVICE) if torch.is_autocast_enabled(_DEVICE) else None


def layer_norm(x: Tensor, norm: nn.LayerNorm, as_input: bool = False) -> Tensor:
    """`norm(x)` for an `x` that `serves` accepts."""
    half = _autocast_dtype()
    out_dtype = x.dtype if half is None else half if as_input else torch.float32
    return _apply(x, None, norm, None, None, _PLAIN, out_dtype, out_dtype)


def norm_gelu(x: Tensor, norm: nn.LayerNorm, pre_bias: Tensor | None = None) -> Tensor:
    """`gelu(norm(x + pre_bias))`, in the dtype of linear layers, for an `x` that `serves` accepts.

    `pre_bias` `(C,)` is the bias of the layer that computed `x` without it.
    """
    dtype = _autocast_dtype() or x.dtype
    return _apply(x, None, norm, pre_bias, None, _GELU, dtype, dtype)


def post_norm(
    residual: Tensor, x: Tensor, norm: nn.LayerNorm, gamma: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """`residual + keep * gamma * norm(x)` for tensors that `serves` accepts."""
    dtype = torch.promote_types(residual.dtype, _branch_dtype(x, gamma, after_norm=True))
    return _apply(x, residual, norm, gamma, keep, _POST, dtype, dtype)


def pre_norm(
    residual: Tensor,
    x: Tensor,
    norm: nn.LayerNorm,
    gamma: Tensor | None = None,
    keep: Tensor | None = None,
    as_input: bool = True,
) -> tuple[Tensor, Tensor]:
    """`sum = residual + keep * gamma * x` and `norm(sum)` for tensors that `serves` accepts."""
    sum_dtype = torch.promote_types(residual.dtype, _branch_dtype(x, gamma, after_norm=False))
    half = _autocast_dtype()
    out_dtype = sum_dtype if half is None else half if as_input else torch.float32
    out, total = _apply(x, residual, norm, gamma, keep, _PRE, out_dtype, sum_dtype)
    return total, out


def drop_path_factors(
    drop_path: nn.Module, x: Tensor, gamma: Tensor | None = None, after_norm: bool = False
) -> Tensor | None:
    """The factors of timm's `DropPath` on the images of a branch, `(N, 1, ...)`, drawn in the same way; None for 1.

    Args:
        drop_path: the module, or an `nn.Identity`.
        x: the branch `(N, ..., C)`.
        gamma: the layer scale, which may widen the dtype of the factors.
        after_norm: a LayerNorm follows, whose result is float32 under autocast.
    """
    rate = getattr(drop_path, "drop_prob", 0.0)
    if not rate or not drop_path.training:
        return None
    dtype = _branch_dtype(x, gamma, after_norm)
    factors = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1), dtype=dtype).bernoulli_(1 - rate)
    return factors.div_(1 - rate) if rate < 1 and drop_path.scale_by_keep else factors


def _branch_dtype(x: Tensor, gamma: Tensor | None, after_norm: bool) -> torch.dtype:
    """The dtype of a branch in PyTorch when it is added to the residual."""
    dtype = torch.float32 if after_norm and _autocast_dtype() is not None else x.dtype
    return dtype if gamma is None else torch.promote_types(dtype, gamma.dtype)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    return backends.select("auto", device) == "cuda"


def is_candidate(x: Tensor) -> bool:
    """A cheap check before `serves`, for CPU tensors and compilers."""
    return getattr(x, _IS_OURS) is True and not torch.compiler.is_compiling()


def serves(x: Tensor, norm: nn.LayerNorm, *parameters: Tensor | None) -> bool:
    """Whether the functions above can replace PyTorch's.

    They need the compiled CUDA kernels, matching float32 or half dtypes, a multiple of 8 channels up to 4096, and a
    plain call (see `is_plain`).

    Args:
        x: `(..., C)`, or the input of the convolution that computes it.
        norm: the LayerNorm, over the last dimension.
        parameters: other `(C,)` parameters of the call.
    """
    if not is_candidate(x) or norm.weight is None or norm.bias is None:
        return False
    dtype, device = norm.weight.dtype, x.get_device()
    given = [p for p in (norm.weight, norm.bias, *parameters) if p is not None]
    return (
        all(parameter.dtype == dtype and parameter.get_device() == device for parameter in given)
        and dtype in _FLOATS
        and (x.dtype == dtype or (torch.is_autocast_enabled(_DEVICE) and x.dtype in _FLOATS))
        and norm.weight.dim() == 1
        and norm.weight.numel() <= _MOST_CHANNELS
        and norm.weight.numel() % 8 == 0
        and x.numel() > 0
        and is_plain(x, *given)
        and _has_kernels(x.device)
    )


def layer_norm_in(sequence: nn.Sequential) -> "LayerNorm | None":
    """The module of a `build_norm_layer` without permutes, if it is our `LayerNorm` and has no hooks, else None."""
    modules = sequence._modules  # indexing an nn.Sequential takes half a microsecond
    layer = modules.get("0")
    return layer if len(modules) == 1 and type(layer) is LayerNorm and has_no_hooks(sequence, layer) else None


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension that uses the compiled kernel on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        if serves(input, self) and input.shape[-1:] == self.weight.shape:
            return layer_norm(input, self)
        return super().forward(input)
