"""Register every released model with timm, for `timm.create_model` after `import internimage`.

    timm.create_model("internimage_t_1k_224", pretrained=True, num_classes=10)
    timm.create_model("internimage_b_1k_224", features_only=True, out_indices=(1, 2, 3))

Weights are loaded by `internimage.checkpoint` and downloaded by `internimage.zoo`, or by timm for its own sources
(`hf-hub:`, `local-dir:`, another `url`).
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from timm.models import build_model_with_cfg, generate_default_cfgs, load_pretrained, register_model
from torch import Tensor, nn

from .backbone import InternImage
from .checkpoint import extract_state_dict, fit_pretrained, read_state_dict
from .meta_former import InternImageMetaFormer
from .variants import VARIANTS, model_class
from .zoo import checkpoint_path, releases

__all__: list[str] = []  # `register_model` adds the names

_logger = logging.getLogger(__name__)


_URLS = {release.name: release.url(release.checkpoint) for release in releases() if release.task == "classification"}


def _default_cfg(name: str) -> dict:
    """timm's description of a model: weights, input, and the layers that fine-tuning replaces."""
    size = int(name.rsplit("_", 1)[1].split("to")[-1])
    flash = name.startswith("flash")
    return {
        "url": _URLS.get(name),
        "num_classes": VARIANTS[name]["num_classes"],
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv1",
        "classifier": ("head", "meta_head") if "inat18" in name else "head",
        "license": "mit",
        "origin_url": f"https://github.com/OpenGVLab/{'DCNv4' if flash else 'InternImage'}",
        "paper_ids": "arXiv:2401.06197" if flash else "arXiv:2211.05778",
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name) for name in VARIANTS})


def _checkpoint_filter(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert any layout to the model's keys, so that timm can load it strictly."""
    state, notices = fit_pretrained(model, extract_state_dict(state_dict))
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
    load_pretrained(
        model, cfg, num_classes=cfg["num_classes"], in_chans=in_chans, filter_fn=_checkpoint_filter, cache_dir=cache_dir
    )


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs) -> nn.Module:
        features_only = kwargs.get("features_only", False)
        kind = model_class(name)
        if features_only:  # without head, and without the metadata that only heads read
            kind = partial(InternImage if kind is InternImageMetaFormer else kind, features_only=True)
        architecture = {key: value for key, value in VARIANTS[name].items() if key != "num_classes"}
        model = build_model_with_cfg(
            kind,
            name,
            False,
            feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
            **{**architecture, **kwargs},
        )
        if pretrained:
            _load(name, model.model if features_only else model, kwargs.get("cache_dir"))
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"InternImage as timm builds models; released as `{name}`."
    return build


for _name in VARIANTS:
    register_model(_entrypoint(_name))
