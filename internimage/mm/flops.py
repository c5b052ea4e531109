"""`get_flops.py`: parameters and FLOPs of a detector or segmentor by the published convention (`internimage.flops`).

What is counted of a two-stage detector is what the original counted: 1000 regions in the box heads and 100 in the mask
head. Models are built on the meta device, so that those with billions of parameters need no memory; only transformer
heads, whose sampling needs numbers, run on the CPU, with all weights zero.
"""

import argparse
import copy
from collections.abc import Sequence

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..errors import exit_on_user_error
from ..flops import count_flops, count_parameters
from .checks import merge_options, read_config

__all__ = ["get_flops", "measure"]

_BOXES, _MASKS = 1000, 100


class _Backbone(nn.Module):
    """Image to the feature maps that the heads get in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.maps = self.backbone(images)
        if isinstance(self.maps[0], tuple):  # composite
            self.maps = self.maps[-1]
        return self.maps


class _Heads(nn.Module):
    """Everything after the backbone, on feature maps that fit an image of this size."""

    def __init__(self, model: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        for name, child in model.named_children():
            if name != "backbone" and "auxiliary" not in name:
                self.add_module(name, child)
        self._forward = [_forward_of(model)]  # in a list, so that the backbone is no part of this module
        self._model, self._shape = [model], shape

    def forward(self, *maps: Tensor) -> None:
        self._forward[0](self._model[0], maps, self._shape)


def _two_stage(model: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    maps = model.neck(maps)
    model.rpn_head(maps)
    roi = model.roi_head
    stages = [("bbox", _BOXES)] + ([("mask", _MASKS)] if roi.with_mask else [])
    for kind, count in stages:
        extractors, heads = getattr(roi, f"{kind}_roi_extractor"), getattr(roi, f"{kind}_head")
        if not isinstance(heads, nn.ModuleList):
            extractors, heads = [extractors], [heads]
        for extractor, head in zip(extractors, heads):
            size = extractor.roi_layers[0].output_size
            head(maps[0].new_zeros(count, extractor.out_channels, *size))


def _samples(shape: tuple[int, int]) -> list:
    from mmdet.structures import DetDataSample

    return [DetDataSample(metainfo={"img_shape": shape, "batch_input_shape": shape, "ori_shape": shape})]


def _dino(model: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    model.bbox_head(**model.forward_transformer(model.neck(maps), _samples(shape)))


def _mask_transformer(model: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    model.decode_head(maps, _samples(shape))


def _convolutional(model: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    model.decode_head(maps)


def _forward_of(model: nn.Module):
    if hasattr(model, "roi_head"):
        return _two_stage
    if hasattr(model, "encoder"):
        return _dino
    return _mask_transformer if hasattr(model.decode_head, "pixel_decoder") else _convolutional


@torch.no_grad()
def measure(config: Config, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the parameters and FLOPs of the model of a configuration for one image of `shape` (height, width)."""
    init_default_scope(config.get("default_scope", "mmengine"))
    with torch.device("meta"):
        model = MODELS.build(copy.deepcopy(config.model)).eval()  # mmdet adds to what it builds from
    parameters = count_parameters(model)
    backbone, heads = _Backbone(model), _Heads(model, shape)
    flops = count_flops(backbone, torch.empty(1, 3, *shape, device="meta"))
    maps = backbone.maps
    if _forward_of(model) in (_dino, _mask_transformer):
        heads.to_empty(device="cpu")
        if "level_embed" in model._parameters:
            model.level_embed = nn.Parameter(torch.zeros(model.level_embed.shape))
        for tensor in (*heads.parameters(), *heads.buffers()):
            tensor.zero_()
        maps = tuple(torch.zeros(feature.shape) for feature in maps)
    return parameters, flops + count_flops(heads, *maps)


@exit_on_user_error
def get_flops(default_shape: tuple[int, int], argv: Sequence[str] | None = None) -> None:
    """`get_flops.py`: print the parameters and FLOPs of a configuration's model."""
    parser = argparse.ArgumentParser(description="Parameters and FLOPs of a model.")
    parser.add_argument("config", help="configuration file")
    parser.add_argument(
        "--shape", type=int, nargs=2, metavar=("H", "W"), default=default_shape, help="default %(default)s"
    )
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to change")
    args = parser.parse_args(argv)
    config = read_config(args.config)
    merge_options(config, args.cfg_options)
    parameters, flops = measure(config, tuple(args.shape))
    height, width = args.shape
    print(f"{args.config}: {parameters / 1e6:.2f} M parameters, {flops / 1e9:.1f} GFLOPs at {height} x {width}")
