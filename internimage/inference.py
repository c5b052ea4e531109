"""Rewrite a trained model for faster inference with the same result. Measurements: docs/performance.md."""

import copy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ops_dcnv3.modules import DCNv3, DCNv4, ToChannelsFirst, ToChannelsLast
from ops_dcnv3.norm import LayerNorm
from ops_dcnv3.onednn import Linear, PackedConv2d, PackedLinear

from .layers import Block, MLPLayer

__all__ = ["fold_layer_scale", "optimize_for_inference"]


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Return a faster copy of `model` with the same results, in evaluation mode and without gradients.

    Layer scales and the head's BatchNorm are folded into neighbouring weights, GELUs into the preceding linear layers.
    One matrix product computes offsets and masks. Weights are packed for oneDNN at first use (a second copy of them).
    Unchanged weights are shared with `model`: call this function again after further training. The copy can be compiled
    and exported, but its state dict is not a checkpoint.
    """
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    model = copy.deepcopy(model, shared).eval()
    for module in list(model.modules()):
        if isinstance(module, Block):
            fold_layer_scale(module)
        elif isinstance(module, MLPLayer) and _is_plain(module.fc1, module.act):
            module.fc1, module.act = PackedLinear(module.fc1, module.act), nn.Identity()
        elif isinstance(module, (DCNv3, DCNv4)) and all(map(_is_plain, _predictors(module))):
            module.merge_predictors()
    if isinstance(getattr(model, "conv_head", None), nn.Sequential):
        model.conv_head = _folded_head(model.conv_head)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (nn.Linear, Linear) and _is_plain(child):
                setattr(module, name, PackedLinear(child))
            elif type(child) is nn.Conv2d and _is_plain(child) and child.padding_mode == "zeros":
                setattr(module, name, PackedConv2d(child))
    return model


def _predictors(layer: DCNv3 | DCNv4) -> list[nn.Module]:
    return [layer.offset, layer.mask] if isinstance(layer, DCNv3) else [layer.offset_mask]


def _is_plain(layer: nn.Module, activation: nn.Module | None = None) -> bool:
    """Whether these are the original layers of the model, without hooks."""
    return (
        type(layer) in (nn.Linear, Linear, nn.Conv2d)
        and type(activation) in (type(None), nn.GELU)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (layer, activation) if module)
    )


def _scaled(parameter: Tensor, scale: Tensor) -> nn.Parameter:
    """A copy of `parameter` with its rows multiplied by `scale`."""
    rows = scale.detach().view(-1, *[1] * (parameter.dim() - 1))
    return nn.Parameter(parameter.detach() * rows, requires_grad=False)


def fold_layer_scale(block: Block) -> None:
    """Multiply the last affine map of both branches by the layer scales: the norm's (post-norm) or the projection's."""
    if not block.layer_scale:
        return
    projections = (getattr(block.dcn, "output_proj", None), block.mlp.fc2)
    lasts = (block.norm1[0], block.norm2[0]) if block.post_norm else projections
    if not all(type(last) in (LayerNorm, nn.LayerNorm, nn.Linear, Linear) for last in lasts):
        return
    for last, name in zip(lasts, ("gamma1", "gamma2")):
        for key, parameter in list(last.named_parameters()):
            setattr(last, key, _scaled(parameter, getattr(block, name)))
        delattr(block, name)
    block.layer_scale = block.res_post_norm = False  # layer scales replace these norms


def _folded_head(head: nn.Sequential) -> nn.Sequential:
    """1x1 convolution, BatchNorm and activation as one linear layer on `(N, H, W, C)`."""
    conv, (norm,), activation = head
    folded = fuse_conv_bn_eval(conv, norm)
    layer = Linear(conv.in_channels, conv.out_channels, device="meta")
    layer.weight = nn.Parameter(folded.weight.detach().flatten(1), requires_grad=False)
    layer.bias = nn.Parameter(folded.bias.detach(), requires_grad=False)
    if type(activation) is nn.GELU:
        return nn.Sequential(ToChannelsLast(), PackedLinear(layer, activation), ToChannelsFirst())
    return nn.Sequential(ToChannelsLast(), PackedLinear(layer), activation, ToChannelsFirst())
