"""Descriptions of an exported model of any task and of its check."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from internimage.meta_former import logits_of_images
from ops_dcnv3 import DCNv3, DCNv4

__all__ = ["Check", "Exportable", "Logits", "Outputs", "elementwise_error", "spread_sampling_points"]

Outputs = tuple[Tensor, ...]


@dataclass
class Exportable:
    """A model that takes one tensor of images, and the content of its file.

    Attributes:
        model: in evaluation mode; `images (N, 3, H, W)` float32, normalised, to a tuple of tensors.
        images: to trace the model with, `(N, 3, H, W)`; a file of fixed shape takes this one.
        output_names: of the tuple's tensors.
        metadata: written into the file if the format supports it: task, mean, std, resize rule, class names (JSON)...
        dynamic: whether batch, height and width are free in the exported file.
        translations: returns the ONNX form of operators that PyTorch's exporter does not support.
        decompositions: returns the decompositions of such operators for compilers.
    """

    model: nn.Module
    images: Tensor
    output_names: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    dynamic: bool = True
    translations: Callable[[], dict] = dict
    decompositions: Callable[[], dict] = dict

    @torch.no_grad()
    def reference(self, images: Tensor) -> Outputs:
        """What PyTorch computes."""
        return tuple(self.model(images))


def elementwise_error(actual: Outputs, expected: Outputs) -> tuple[float, float]:
    """Largest absolute difference over all outputs, and the largest one relative to its output's largest value."""
    worst_absolute = worst_relative = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape:
            return float("inf"), float("inf")
        if not b.numel():
            continue
        difference = (a.double() - b.double()).abs().max().item()
        scale = b.double().abs().max().item()
        # NaN in either tensor compares as not close.
        difference = difference if difference == difference else float("inf")
        worst_absolute = max(worst_absolute, difference)
        worst_relative = max(worst_relative, difference / scale if scale else difference)
    return worst_absolute, worst_relative


@dataclass
class Check:
    """How a file is compared with PyTorch.

    Attributes:
        samples: images to compare with, of several sizes and batches if the file takes them.
        source: what they show, for the report.
        error: (actual, expected) to the largest absolute and relative error.
        matched: (actual, expected) to the number of expected objects that `error` compares, and of all of them; None if
            outputs are compared as a whole.
    """

    samples: list[Tensor]
    source: str = ""
    error: Callable[[Outputs, Outputs], tuple[float, float]] = elementwise_error
    matched: Callable[[Outputs, Outputs], tuple[int, int]] | None = None


class Logits(nn.Module):
    """A classifier for exporters: `(N, 3, H, W)` to `((N, classes),)`; unknown place and date are zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (logits_of_images(self.model, images),)


def spread_sampling_points(model: nn.Module) -> None:
    """Draw the offset and mask layers of a new model, which are zero, so that its points spread as in a trained one."""
    for module in model.modules():
        if isinstance(module, DCNv3):
            # Offsets of about half a pixel times the offset scale, however many channels they come from. With 0.1,
            # an error of 1e-6 in the image would be 1e-2 in the last features of an L; so it is 3e-6.
            for layer in (module.offset, module.mask):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        elif isinstance(module, DCNv4):
            # Predicted from features before any norm, which are larger: an error would double in every block of a T.
            nn.init.normal_(module.offset_mask.weight, std=0.02)
