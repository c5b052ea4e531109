"""What makes a GPU fast and changes no checkpoint: TF32, channels-last weights, compiled models."""

import torch
from torch import nn

__all__ = ["compile_model", "place_model", "set_tf32"]


def set_tf32(device: torch.device, enabled: bool) -> None:
    """Whether float32 matrix products and convolutions on a GPU may round their factors to TF32 (10-bit mantissas).

    On a CPU nothing is changed.
    """
    if device.type != "cuda":
        return
    # These two work from torch 2.10 on. After the newer `fp32_precision` attributes alone, Inductor of 2.10 and 2.11
    # raises an error where it reads the older ones (pytorch issue 166387).
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def place_model(model: nn.Module, device: torch.device, compile_mode: str = "off") -> nn.Module:
    """Move a model, and compile it (see `compile_model`).

    On a GPU convolution weights become channels-last, as the activations are: otherwise cuDNN rearranges them in
    every pass, and their gradients are copied back. On a CPU, where oneDNN has its own layouts, they are left alone.
    """
    model.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format)
    compile_model(model, compile_mode)
    return model


def compile_model(model: nn.Module, mode: str) -> None:
    """`torch.compile` a model in place, so that its state dict keeps its keys; `off` leaves it alone.

    Shapes are static: those of a training batch, of a validation batch and of the last one. Copies of the model are
    not compiled.
    """
    if mode != "off":
        model.compile(mode=mode, dynamic=False)
