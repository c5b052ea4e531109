"""Register every released model with timm, for `timm.create_model` after `import internimage`.

    timm.create_model("internimage_t_1k_224", pretrained=True, num_classes=10)
    timm.create_model("internimage_b_1k_224", features_only=True, out_indices=(1, 2, 3))

Weights are loaded by `internimage.checkpoint` and downloaded by `internimage.zoo`, or by timm for its own sources
(`hf-hub:`, `local-dir:`, another `url`). More: docs/timm.md.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, load_pretrained, register_model
from torch import Tensor, nn

from .backbone import InternImage
from .checkpoint import extract_state_dict, fit_pretrained, read_state_dict
from .meta_former import InternImageMetaFormer
from .variants import VARIANTS, model_class
from .zoo import checkpoint_path, releases

__all__ = ["checkpoint_filter_fn", "default_cfgs"]

_logger = logging.getLogger(__name__)


_URLS = {release.name: release.url(release.checkpoint) for release in releases() if release.task == "classification"}


def _default_cfg(name: str) -> dict:
    """timm's description of a model: weights, input, and the layers that fine-tuning replaces."""
    size = int(name.rsplit("_", 1)[1].split("to")[-1])
    flash = name.startswith("flash")
    map_size = size // (16 if VARIANTS[name].get("use_clip_projector") else 32)  # of `forward_features`
    return {
        "url": _URLS.get(name),
        "num_classes": VARIANTS[name]["num_classes"],
        "input_size": (3, size, size),
        "pool_size": (map_size, map_size),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv1",
        "classifier": ("head", "meta_head") if "inat18" in name else "head",
        "license": "mit",
        "origin_url": f"https://github.com/OpenGVLab/{'DCNv4' if flash else 'InternImage'}",
        "paper_ids": "arXiv:2401.06197" if flash else "arXiv:2211.05778",
        "paper_name": "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications"
        if flash
        else "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name) for name in VARIANTS})


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert any layout to the model's keys, so that timm can load it strictly."""
    state, notices = fit_pretrained(model, extract_state_dict(state_dict))
    if model.pretrained_cfg.get("num_classes") == 0:  # saved without a classifier
        state = {k: v for k, v in model.state_dict().items() if k.startswith(("head.", "meta_head."))} | state
    for notice in notices:
        _logger.info(notice)
    return state


def _load(name: str, model: nn.Module, cache_dir: str | None) -> None:
    cfg = dict(model.pretrained_cfg)
    if cfg.get("source") not in ("hf-hub", "local-dir") and not cfg.get("state_dict") and not cfg.get("hf_hub_id"):
        if cfg.get("file"):
            cfg["state_dict"] = read_state_dict(cfg["file"])
        elif cfg.get("url") == default_cfgs[name].default.url:
            cfg["state_dict"] = read_state_dict(checkpoint_path(name))
    in_chans = model.patch_embed.conv1.in_channels
    # The filter has already fitted the head to the model, so timm must not see a different class count.
    load_pretrained(model, cfg, cfg["num_classes"], in_chans, checkpoint_filter_fn, cache_dir=cache_dir)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, *, device=None, dtype: torch.dtype | None = None, **kwargs) -> nn.Module:
        features_only = kwargs.get("features_only", False)
        if features_only and kwargs.get("feature_cls", "getter") != "getter":
            raise ValueError(f"feature_cls of {name} can only be 'getter'; got {kwargs['feature_cls']!r}")

        def construct(**arguments) -> nn.Module:
            kind = model_class(name)
            if features_only:  # without head, and without the metadata that only heads read
                kind, arguments["features_only"] = InternImage if kind is InternImageMetaFormer else kind, True
            with nullcontext() if device is None else torch.device(device):
                return kind(**arguments).to(dtype=dtype)

        architecture = {key: value for key, value in VARIANTS[name].items() if key != "num_classes"}
        model = build_model_with_cfg(
            construct,
            name,
            False,
            feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
            **{**architecture, **kwargs},
        )
        if pretrained:
            _load(name, model.model if features_only else model, kwargs.get("cache_dir"))
        return model

    build.__name__ = build.__qualname__ = name
    build.__module__ = __package__  # timm.list_models(module="internimage")
    build.__doc__ = f"InternImage as timm builds models; released as `{name}`."
    return build


sys.modules[__package__].default_cfgs = default_cfgs  # timm reads it from the module of the function
for _name in VARIANTS:
    register_model(_entrypoint(_name))
