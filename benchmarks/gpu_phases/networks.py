"""The networks that are measured, with seeded random weights, and what they compute in float64."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import internimage
from internimage.export.spec import spread_sampling_points

__all__ = ["MODELS", "References", "create", "images_for", "layout_of", "relative_error", "set_precision"]

# Name in tables: name for create_model, pixels per side.
MODELS = {
    **{f"InternImage-{size}": (f"internimage_{size.lower()}_1k_224", 224) for size in "TSB"},
    **{f"InternImage-{size}": (f"internimage_{size.lower()}_22kto1k_384", 384) for size in ("L", "XL")},
    "ConvNeXt-T": ("convnext_tiny", 224),
    "ConvNeXt-B": ("convnext_base", 224),
    "Swin-T": ("swin_tiny_patch4_window7_224", 224),
    "Swin-B": ("swin_base_patch4_window7_224", 224),
}


def create(name: str, device: torch.device, **options: Any) -> nn.Module:
    """The network with seeded random weights; sampling points spread and layer scales large enough to matter."""
    key, _ = MODELS[name]
    torch.manual_seed(0)
    with device:
        if not key.startswith("internimage"):
            return timm.create_model(key)
        model = internimage.create_model(key, **options)
    spread_sampling_points(model)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("gamma1", "gamma2")):
            nn.init.constant_(parameter, 0.1)
    return model


def images_for(name: str, batch: int, device: torch.device) -> Tensor:
    side = MODELS[name][1]
    return torch.randn(batch, 3, side, side, device=device)


def layout_of(name: str) -> torch.memory_format:
    return torch.contiguous_format if name.startswith("Swin") else torch.channels_last


def relative_error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


class References:
    """Two images for each network and what it makes of them in float64, computed once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self.found:
            images = images_for(name, 2, self.device)
            self.found[name] = images, self.exact(name).eval()(images.double())
        return self.found[name]

    def exact(self, name: str) -> nn.Module:
        """The network in float64."""
        model = create(name, self.device)
        if name.startswith("InternImage"):
            weights = model.state_dict()
            model = create(name, self.device, core_op="DCNv3_pytorch")
            model.load_state_dict(weights)
        return model.double()

    def gradient_error(self, name: str) -> float:
        """Relative error of the gradient of all parameters in float32."""
        images, _ = self(name)
        labels = torch.arange(len(images), device=self.device)
        gradients = []
        for model in (create(name, self.device), self.exact(name)):
            model.eval()  # without dropped paths
            parameter = next(model.parameters())
            F.cross_entropy(model(images.to(parameter.dtype)), labels).backward()
            gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
        return relative_error(*gradients)


def set_precision(precision: str) -> None:
    tf32 = precision == "TF32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
