"""Operator cases for the kernel tests, and the definition of DCNv3 written as plainly as possible."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One call: sizes of the input, window, and switches."""

    batch: int = 1
    height: int = 5
    width: int = 6
    groups: int = 2
    channels: int = 8  # of one group
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    offset_scale: float = 1.0
    remove_center: bool = False
    logits: bool = False

    @property
    def points(self) -> int:
        return self.kernel[0] * self.kernel[1] - self.remove_center

    @property
    def out_size(self) -> tuple[int, int]:
        sizes = zip((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.out_size, self.groups * self.channels)

    @property
    def sizes(self) -> list[int]:
        sizes = [self.batch, self.height, self.width, self.groups, self.channels]
        sizes += [*self.kernel, *self.stride, *self.padding, *self.dilation]
        return [*sizes, int(self.remove_center), int(self.logits)]

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random input, offset, mask and output gradient; the offsets reach beyond the input's border."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        input = randn(self.batch, self.height, self.width, self.groups * self.channels)
        offset = 2 * randn(self.batch, *self.out_size, self.groups * self.points * 2)
        mask = randn(self.batch, *self.out_size, self.groups * self.points)
        return tuple(x.to(dtype) for x in (input, offset, mask, randn(*self.output_shape)))


def reference(case: Case, input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """DCNv3 in double, point by point and corner by corner; differentiable."""
    (n, h, w), (ho, wo) = (case.batch, case.height, case.width), case.out_size
    x = input.double().view(n, h, w, case.groups, case.channels)
    offset = offset.double().view(n, ho, wo, case.groups, case.points, 2)
    mask = mask.double().view(n, ho, wo, case.groups, case.points)
    if case.logits:
        mask = mask.softmax(-1)
    image = torch.arange(n).view(n, 1, 1, 1)
    group = torch.arange(case.groups)

    def axis(out, index, shift, which):
        center = case.dilation[which] * (case.kernel[which] - 1) // 2
        start = out * case.stride[which] - case.padding[which] + center - center * case.offset_scale
        return start + (index * case.dilation[which] + shift) * case.offset_scale

    points = [(i, j) for i in range(case.kernel[1]) for j in range(case.kernel[0])]
    if case.remove_center:
        points.remove((case.kernel[1] // 2, case.kernel[0] // 2))
    output = torch.zeros(n, ho, wo, case.groups, case.channels, dtype=torch.float64)
    for k, (i, j) in enumerate(points):
        row = axis(torch.arange(ho).double().view(1, ho, 1, 1), j, offset[..., k, 1], 0)
        column = axis(torch.arange(wo).double().view(1, 1, wo, 1), i, offset[..., k, 0], 1)
        counts = (row > -1) & (row < h) & (column > -1) & (column < w)
        top, left = row.detach().floor().long(), column.detach().floor().long()
        down, right = row - top, column - left
        for r, share_h in ((top, 1 - down), (top + 1, down)):
            for c, share_w in ((left, 1 - right), (left + 1, right)):
                inside = counts & (r >= 0) & (r < h) & (c >= 0) & (c < w)
                weight = share_h * share_w * inside * mask[..., k]
                output = output + weight[..., None] * x[image, r.clamp(0, h - 1), c.clamp(0, w - 1), group]
    return output.view(case.output_shape)


def reference_gradients(case: Case, grad_output: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gradients of `reference` with respect to input, offset and mask."""
    leaves = [x.double().requires_grad_() for x in tensors]
    return torch.autograd.grad(reference(case, *leaves), leaves, grad_output.double())
