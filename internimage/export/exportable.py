"""What the exporter needs to know about a model, whatever its task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ops_dcnv3 import DCNv3, DCNv4

__all__ = ["Exportable", "Logits", "Outputs", "elementwise_error", "spread_sampling_points"]

Outputs = tuple[Tensor, ...]


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


class Logits(nn.Module):
    """A classifier as exporters want it, its logits in a tuple: `(N, 3, H, W)` to `((N, classes),)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model(images),)


def spread_sampling_points(model: nn.Module) -> None:
    """Draw offsets and masks of a new model, which are zero, so that its points are spread like a trained one's."""
    for module in model.modules():
        if isinstance(module, DCNv3):
            # Offsets of about half a pixel times the offset scale, however many channels they come from. With 0.1,
            # an error of 1e-6 in the image would be 1e-2 in the last features of an L; so it is 3e-6.
            for layer in (module.offset, module.mask):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        elif isinstance(module, DCNv4):
            # Predicted from features before any norm, which are larger: an error would double in every block of a T.
            nn.init.normal_(module.offset_mask.weight, std=0.02)


@dataclass
class Exportable:
    """A model that takes one tensor of images, and how to feed, describe and judge it.

    Attributes:
        model: in evaluation mode; `images (N, 3, H, W)` float32, normalised, to a tuple of tensors.
        output_names: of the tuple's tensors.
        size: height and width that the model is for.
        metadata: written into the file where the format allows it: task, mean, std, resize rule, class names (JSON)...
        samples: images of the parity check, of several sizes and batches if `dynamic`.
        dynamic: whether batch, height and width are free in the exported file.
        multiple: heights and widths must be multiples of it.
        compare: (actual, expected) to the largest absolute and relative error.
        matched: (actual, expected) to how many of the expected objects `compare` found a partner for, and of how many;
            None if outputs are compared as wholes.
        sample_names: what the samples show, for the report.
        calibration: real images `(1, 3, H, W)` of `size`, from which quantisation takes the ranges of values.
        labelled: gives batches of images `(N, 3, H, W)` and labels `(N,)`, for measuring a classifier's accuracy.
        translations: gives the ONNX form of operators that PyTorch's exporter does not know.
        decompositions: gives what compilers make of such operators.
    """

    model: nn.Module
    output_names: tuple[str, ...]
    size: tuple[int, int]
    metadata: dict[str, str]
    samples: list[Tensor]
    dynamic: bool = True
    multiple: int = 1
    compare: Callable[[Outputs, Outputs], tuple[float, float]] = elementwise_error
    matched: Callable[[Outputs, Outputs], tuple[int, int]] | None = None
    sample_names: list[str] = field(default_factory=list)
    calibration: list[Tensor] = field(default_factory=list)
    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None = None
    translations: Callable[[], dict] = dict
    decompositions: Callable[[], dict] = dict

    @torch.no_grad()
    def reference(self, images: Tensor) -> Outputs:
        """What PyTorch computes."""
        return tuple(self.model(images))
