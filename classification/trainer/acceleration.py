"""Speed settings that do not change checkpoints: TF32, channels-last weights, compiled models."""

import torch
from torch import nn

__all__ = ["compile_model", "place_model", "set_tf32"]


def set_tf32(device: torch.device, enabled: bool) -> None:
    """Allow float32 matrix products and convolutions on a GPU to use TF32 (10-bit mantissas). No effect on a CPU."""
    if device.type != "cuda":
        return
    # Not the newer `fp32_precision` attributes: after these, Inductor of torch 2.10 and 2.11 raises an error where it
    # reads the older ones (pytorch issue 166387).
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def place_model(model: nn.Module, device: torch.device, compile_mode: str = "off") -> nn.Module:
    """Move a model to a device and compile it (see `compile_model`).

    On a GPU convolution weights become channels-last, like the activations: otherwise cuDNN converts them in every pass
    and copies the gradients back. On a CPU, where oneDNN has its own layouts, they do not change.
    """
    model.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format)
    compile_model(model, compile_mode)
    return model


def compile_model(model: nn.Module, mode: str) -> None:
    """`torch.compile` a model in place, so that its state dict keeps its keys; `off`: no effect.

    Shapes are static: those of a training batch, of a validation batch and of the last one. Copies of the model are
    not compiled.
    """
    if mode != "off":
        model.compile(mode=mode, dynamic=False)
