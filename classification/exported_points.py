"""A classifier whose exported file also returns where the operator samples, for the page of `docs/web`."""

import json

import torch
from torch import Tensor, nn

from internimage.errors import UserError
from internimage.meta_former import logits_of_images
from ops_dcnv3 import DCNv3, DCNv3_pytorch
from ops_dcnv3.reference import Geometry, sampling_locations

__all__ = ["LogitsAndPoints"]

_STEM_STRIDE = 4


class _Recorder(nn.Module):
    """A forward hook of a layer's `dw_conv`, from whose output its offsets and mask are predicted.

    Not a hook of the layer: exporting replaces the layer, but keeps its `dw_conv`.
    """

    def __init__(self, layer: DCNv3, stride: int, found: list[Tensor]) -> None:
        super().__init__()
        self.offset, self.mask, self.found, self.stride = layer.offset, layer.mask, found, stride * layer.stride
        self.scale = stride  # image pixels from one input pixel of the layer to the next
        square = (layer.kernel_size, layer.stride, layer.pad, layer.dilation)
        sizes = (size for size in square for _ in range(2))
        self.geometry = Geometry(*sizes, layer.group, layer.offset_scale, layer.remove_center, True)

    def forward(self, dw_conv: nn.Module, args: tuple, features: Tensor) -> None:
        x, y = sampling_locations(self.offset(features).float(), self.geometry)
        weight = self.mask(features).float().reshape(x.shape).softmax(-1)
        self.found.append(torch.stack([x * self.scale, y * self.scale, weight], -1))

    def grid(self) -> list[list[float]]:
        """The points without offsets, (x, y) in image pixels from the output pixel."""
        offset = self.offset.weight.new_zeros(1, 1, 1, self.geometry.groups * self.geometry.points * 2)
        x, y = sampling_locations(offset, self.geometry)
        return (torch.stack([x, y], -1)[0, 0, 0, 0] * self.scale).tolist()


class LogitsAndPoints(nn.Module):
    """Images `(N, C, H, W)` to logits and the points of the last block of each level, `(N, Ho, Wo, G, P, 3)`.

    The last axis holds column and row in pixels of the input (0 is the centre of the first pixel) and the weight; these
    are the numbers of `classification.figures.sampling_points.collect_points`.

    Raises:
        UserError: a model with another operator than DCNv3.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = [level.blocks[-1].dcn for level in model.levels]
        if other := {type(layer) for layer in layers} - {DCNv3, DCNv3_pytorch}:
            raise UserError(f"--sampling-points needs DCNv3, but this model has {other.pop().__name__} layers")
        self.model, self.found = model, []
        self.recorders = nn.ModuleList(
            _Recorder(layer, _STEM_STRIDE * 2**number, self.found) for number, layer in enumerate(layers)
        )
        for layer, recorder in zip(layers, self.recorders):
            layer.dw_conv.register_forward_hook(recorder)
        self.output_names = ("logits", *(f"points_{number}" for number in range(len(layers))))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = logits_of_images(self.model, images)
        points = tuple(self.found)
        self.found.clear()
        return (logits, *points)

    def metadata(self) -> dict[str, str]:
        """`points`: for each level the stride in image pixels and the points of the kernel without offsets, as JSON."""
        levels = [{"stride": recorder.stride, "grid": recorder.grid()} for recorder in self.recorders]
        return {"points": json.dumps(levels)}
