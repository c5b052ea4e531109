"""Cases of multi-scale deformable attention for the kernel tests, and its definition written as plainly as possible."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionCase:
    """One call: the sizes of the maps and of the tensors."""

    shapes: tuple[tuple[int, int], ...] = ((5, 7), (3, 4))
    images: int = 2
    queries: int = 5
    heads: int = 2
    depth: int = 8
    points: int = 4

    @property
    def keys(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def sizes(self) -> list[int]:
        return [self.images, self.keys, self.queries, self.heads, self.depth, len(self.shapes), self.points]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.images, self.queries, self.heads * self.depth

    def tensors(self, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Value, shapes, locations, weights and output gradient; the locations reach beyond the maps."""
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "dtype": torch.float64}
        value = torch.randn(self.images, self.keys, self.heads, self.depth, **options)
        points = (self.images, self.queries, self.heads, len(self.shapes), self.points)
        locations = 1.6 * torch.rand(*points, 2, **options) - 0.3
        weights, grad_output = torch.randn(points, **options), torch.randn(self.output_shape, **options)
        shapes = torch.tensor(self.shapes, dtype=torch.int64).view(-1, 2)
        return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype), grad_output.to(dtype)


def reference(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention in double, level by level and corner by corner; differentiable."""
    value, locations, weights = value.double(), locations.double(), weights.double()
    images, _, heads, depth = value.shape
    image = torch.arange(images).view(images, 1, 1, 1)
    head = torch.arange(heads).view(1, 1, heads, 1)
    output = value.new_zeros(images, locations.shape[1], heads, depth)
    start = 0
    for level, (height, width) in enumerate(shapes.tolist()):
        x = locations[:, :, :, level, :, 0] * width - 0.5
        y = locations[:, :, :, level, :, 1] * height - 0.5
        counts = (y > -1) & (y < height) & (x > -1) & (x < width)
        x, y = x.where(counts, 0.0), y.where(counts, 0.0)
        top, left = y.detach().floor().long(), x.detach().floor().long()
        down, right = y - top, x - left
        for row, share_h in ((top, 1 - down), (top + 1, down)):
            for column, share_w in ((left, 1 - right), (left + 1, right)):
                inside = counts & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                key = start + (row * width + column).where(inside, 0)
                weight = share_h * share_w * inside * weights[:, :, :, level]
                output = output + (weight[..., None] * value[image, key, head]).sum(3)
        start += height * width
    return output.flatten(2)


def reference_gradients(grad_output: Tensor, value: Tensor, shapes: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `reference` with respect to value, locations and weights."""
    value, *rest = (tensor.double().requires_grad_() for tensor in (value, *rest))
    return torch.autograd.grad(reference(value, shapes, *rest), (value, *rest), grad_output.double())
