"""`get_flops.py`: parameters and FLOPs of a detector or segmentor by the published convention (`internimage.flops`).

Two-stage detectors are counted as in the original project: 1000 regions in the box heads and 100 in the mask head.
Models are built on the meta device, so that billions of parameters need no memory; only transformer heads, whose
sampling needs values, run on the CPU, with zero weights.
"""

import copy
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..errors import ArgumentParser, exit_on_user_error
from ..export.cli import image_size
from ..flops import count_flops, count_parameters, describe_size
from .checks import add_config, read_config

__all__ = ["get_flops", "measure"]

_BOXES, _MASKS = 1000, 100


def _two_stage(model: nn.Module, maps: tuple[Tensor, ...]) -> None:
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


def _heads(model: nn.Module, maps: tuple[Tensor, ...], shape: tuple[int, int]) -> None:
    if hasattr(model, "roi_head"):
        _two_stage(model, maps)
    elif hasattr(model, "encoder"):  # DINO
        model.bbox_head(**model.forward_transformer(model.neck(maps), _samples(shape)))
    elif hasattr(model.decode_head, "pixel_decoder"):  # Mask2Former
        model.decode_head(maps, _samples(shape))
    else:
        model.decode_head(maps)


@torch.no_grad()
def measure(config: Config, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the parameters and FLOPs of the model of a configuration for one image of `shape` (height, width)."""
    init_default_scope(config.get("default_scope", "mmengine"))
    with torch.device("meta"):
        model = MODELS.build(copy.deepcopy(config.model)).eval()  # mmdet adds to what it builds from
    parameters = count_parameters(model)
    maps: list[Tensor] = []

    def backbone(images: Tensor) -> None:
        found = model.backbone(images)
        maps.extend(found[-1] if isinstance(found[0], tuple) else found)  # a composite's second

    flops = count_flops(model, torch.empty(1, 3, *shape, device="meta"), forward=backbone)
    if hasattr(model, "encoder") or hasattr(getattr(model, "decode_head", None), "pixel_decoder"):
        model.backbone = nn.Identity()
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
        maps = [torch.zeros(feature.shape) for feature in maps]
    return parameters, flops + count_flops(model, forward=lambda: _heads(model, tuple(maps), shape))


@exit_on_user_error
def get_flops(default_shape: tuple[int, int], argv: Sequence[str] | None = None) -> None:
    """`get_flops.py`: print the parameters and FLOPs of a configuration's model."""
    parser = ArgumentParser(description="Print the parameters and FLOPs of a model.")
    add_config(parser)
    help = "one number, or height and width; default: %(default)s"
    parser.add_argument("--size", "--shape", type=int, nargs="+", metavar="PIXELS", default=default_shape, help=help)
    args = parser.parse_args(argv)
    config = read_config(args.config, args.cfg_options)
    height, width = image_size(args, default_shape)
    parameters, flops = measure(config, (height, width))
    print(f"{args.config}: {describe_size(parameters, flops)} at {height} x {width}")
