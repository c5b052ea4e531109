"""Calls of the LayerNorm kernels and their definition in double, for the tests on emulated and on real GPUs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops_dcnv3 import norm

FORMS = {"plain": norm._PLAIN, "gelu": norm._GELU, "post": norm._POST, "pre": norm._PRE}
# x, residual, result and parameters; the last two are what autocast leads to.
TYPES = {
    "float32": (torch.float32,) * 4,
    "float16": (torch.float16,) * 4,
    "bfloat16": (torch.bfloat16,) * 4,
    "mixed float16": (torch.float16, torch.float32, torch.float16, torch.float32),
    "mixed bfloat16": (torch.bfloat16, torch.float32, torch.bfloat16, torch.float32),
}
# Sums and statistics are float32; results are rounded once, sums of the pre-norm form once before they are normalised.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """`images` images of `rows` rows of `channels`; `extra` and `keep` say whether these arguments are there."""

    form: str
    channels: int
    rows: int
    images: int = 1
    types: str = "float32"
    extra: bool = True
    keep: bool = True

    def tensors(self, device: str = "cpu") -> tuple[Tensor | None, ...]:
        """x, residual, weight, bias, extra, keep, grad, grad_sum."""
        generator = torch.Generator().manual_seed(self.channels * 1000 + self.rows)
        x_type, residual_type, out_type, parameter_type = TYPES[self.types]

        def random(*sizes: int, dtype: torch.dtype, shift: float = 0.0) -> Tensor:
            return (torch.randn(sizes, generator=generator) + shift).to(device, dtype)

        sizes = (self.images, self.rows, self.channels)
        has_extra = self.extra and self.form != "plain"
        has_keep = self.keep and self.form in ("post", "pre")
        return (
            random(*sizes, dtype=x_type, shift=0.5),
            random(*sizes, dtype=residual_type) if self.form in ("post", "pre") else None,
            random(self.channels, dtype=parameter_type),
            random(self.channels, dtype=parameter_type),
            random(self.channels, dtype=parameter_type) if has_extra else None,
            torch.tensor([0.0, 1.25, 1.25])[torch.arange(self.images) % 3].to(device, x_type) if has_keep else None,
            random(*sizes, dtype=out_type),
            random(*sizes, dtype=residual_type) if self.form == "pre" else None,
        )


def definition(form: str, x, residual, weight, bias, extra, keep, eps: float) -> tuple[Tensor, ...]:
    """The results `out` or `out, sum`, step by step."""
    one = x.new_ones(())
    scale = (one if extra is None else extra) * (one if keep is None else keep.view(-1, 1, 1))

    def normed(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    if form == "plain":
        return (normed(x),)
    if form == "gelu":
        return (F.gelu(normed(x if extra is None else x + extra)),)
    if form == "post":
        return (residual + scale * normed(x),)
    total = residual + scale * x
    return normed(total), total


def differentiable(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def expected(case: Case, tensors: tuple[Tensor | None, ...], eps: float) -> tuple[list[Tensor], list[Tensor | None]]:
    """Results and gradients in double."""
    *inputs, keep, grad, grad_sum = (None if t is None else t.double() for t in tensors)
    inputs = differentiable(inputs)
    results = definition(case.form, *inputs, keep, eps)
    torch.autograd.backward(results, [grad, grad_sum][: len(results)])
    return [r.detach() for r in results], [None if t is None else t.grad for t in inputs]


def computed(case: Case, tensors: tuple[Tensor | None, ...], eps: float) -> tuple[list[Tensor], list[Tensor | None]]:
    """The same by the kernels."""
    *inputs, keep, grad, grad_sum = tensors
    x, residual, weight, bias, extra = inputs = differentiable(inputs)
    layer = nn.LayerNorm(case.channels, eps=eps)
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    sum_type = x.dtype if residual is None else residual.dtype
    results = norm._apply(x, residual, layer, extra, keep, FORMS[case.form], grad.dtype, sum_type)
    results = results if case.form == "pre" else (results,)
    torch.autograd.backward(results, [grad, grad_sum][: len(results)])
    gradients = [None if t is None else t.grad for t in (x, residual, layer.weight, layer.bias, extra)]
    return [r.detach() for r in results], gradients


def assert_agrees(case: Case, tensors: tuple[Tensor | None, ...], eps: float = 1e-6) -> None:
    """Compare results and gradients of the kernels with the definition."""
    tolerance = TOLERANCE[TYPES[case.types][0]]
    (ours, our_gradients), (theirs, their_gradients) = computed(case, tensors, eps), expected(case, tensors, eps)
    for actual, wanted in zip(ours + our_gradients, theirs + their_gradients, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None:
            scale = max(wanted.abs().max().item(), 1.0)
            torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance * scale)
