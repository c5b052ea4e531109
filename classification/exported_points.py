"""A classifier whose exported file also returns where the operator samples, for the page of `docs/web`."""

import json

import torch
from torch import Tensor, nn

from internimage.errors import UserError
from internimage.export.cores import layer_geometry
from internimage.meta_former import logits_of_images
from ops_dcnv3 import DCNv3, DCNv3_pytorch
from ops_dcnv3.reference import sampling_locations

__all__ = ["LogitsAndPoints"]


class _Recorder(nn.Module):
    """A forward hook of a layer's `dw_conv`, which predicts offsets and mask; exporting keeps it, but not the layer."""

    def __init__(self, layer: DCNv3, pixels: int, found: list[Tensor]) -> None:
        super().__init__()
        self.offset, self.mask, self.found, self.pixels = layer.offset, layer.mask, found, pixels
        self.geometry = layer_geometry(layer, mask_is_logits=True)

    def _locations(self, offset: Tensor) -> Tensor:
        return torch.stack(sampling_locations(offset.float(), self.geometry), -1) * self.pixels

    def forward(self, dw_conv: nn.Module, args: tuple, features: Tensor) -> None:
        points = self._locations(self.offset(features))
        weight = self.mask(features).float().reshape(points.shape[:-1]).softmax(-1)
        self.found.append(torch.cat([points, weight[..., None]], -1))

    def level(self) -> dict:
        """Image pixels from one output pixel to the next, and the points without offsets relative to it."""
        grid = self._locations(torch.zeros(1, 1, 1, self.offset.out_features))[0, 0, 0, 0]
        return {"stride": self.pixels * self.geometry.stride_w, "grid": grid.tolist()}


class LogitsAndPoints(nn.Module):
    """Images `(N, C, H, W)` to logits and the points of the last block of each level, `(N, Ho, Wo, G, P, 3)`.

    Column and row, in pixels of the input as in `internimage.visualization.sampling_points`, and weight. The metadata
    hold the levels' strides and undeformed points as JSON.

    Raises:
        UserError: a model with another operator than DCNv3.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = [level.blocks[-1].dcn for level in model.levels]
        if other := {type(layer) for layer in layers} - {DCNv3, DCNv3_pytorch}:
            raise UserError(f"--sampling-points needs DCNv3, but this model has {other.pop().__name__} layers")
        self.model, self.found = model, []
        self.recorders = nn.ModuleList(_Recorder(layer, 4 * 2**i, self.found) for i, layer in enumerate(layers))
        for layer, recorder in zip(layers, self.recorders):
            layer.dw_conv.register_forward_hook(recorder)
        self.output_names = ("logits", *(f"points_{i}" for i in range(len(layers))))
        self.metadata = {"points": json.dumps([recorder.level() for recorder in self.recorders])}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, points = logits_of_images(self.model, images), tuple(self.found)
        self.found.clear()
        return (logits, *points)
