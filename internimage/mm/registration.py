"""The backbones and the learning-rate rule of InternImage in mmengine's root registries.

Models with such a backbone convert released checkpoints whenever they load them.
"""

import difflib
import inspect
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .. import backbone, composite, flash
from ..checkpoint import install_layout_hook, load_pretrained, read_state_dict
from ..errors import UserError
from ..optim import mm_param_scales
from ..zoo import local_checkpoint

__all__ = ["CBInternImage", "CustomLayerDecayOptimizerConstructor", "FlashInternImage", "InternImage"]


class _MMBackbone:
    """What mmengine expects of a backbone, added to one of this project's.

    Args (beyond the backbone's own):
        init_cfg: None, or `dict(type="Pretrained", checkpoint=path or URL)`.
        frozen_stages: number of levels, from the first, that are frozen.
    """

    def __init__(self, *, init_cfg: Mapping | None = None, frozen_stages: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.init_cfg = dict(init_cfg) if init_cfg else None
        if self.init_cfg and (self.init_cfg.get("type") != "Pretrained" or not self.init_cfg.get("checkpoint")):
            raise UserError(
                f"init_cfg of {type(self).__name__} must be None or dict(type='Pretrained', checkpoint=...); "
                f"got {self.init_cfg}"
            )
        self.is_init = False
        for module in self._plain():
            module.freeze_levels(frozen_stages)
            del module.num_classes  # mmdet compares what has this name with the data set's classes

    def _plain(self) -> list[backbone.InternImage]:
        """The plain backbones inside this one."""
        return [self]

    def _part_of(self, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
        """The part of a classifier's weights that this plain backbone loads."""
        return state

    def init_weights(self) -> None:
        """Load the pretrained weights of `init_cfg`, if any; without them the constructor's random weights stay."""
        if self.init_cfg and not self.is_init:
            source = str(self.init_cfg["checkpoint"])
            print_log(f"{type(self).__name__}: pretrained weights from {source}", logger="current")
            state = read_state_dict(local_checkpoint(source))
            for module in self._plain():
                for notice in load_pretrained(module, self._part_of(state, module)):
                    print_log(f"{type(self).__name__}: {notice}", logger="current")
        self.is_init = True


@MODELS.register_module()
class InternImage(_MMBackbone, backbone.InternImage):
    """`internimage.InternImage` giving the feature maps of `out_indices`, `(N, C, H, W)`."""

    def __init__(self, *, out_indices=(0, 1, 2, 3), **kwargs) -> None:
        super().__init__(out_indices=out_indices, **kwargs)


@MODELS.register_module()
class FlashInternImage(_MMBackbone, flash.FlashInternImage):
    """`internimage.FlashInternImage` giving the feature maps of `out_indices`, `(N, C, H, W)`."""

    def __init__(self, *, out_indices=(0, 1, 2, 3), **kwargs) -> None:
        super().__init__(out_indices=out_indices, **kwargs)


@MODELS.register_module()
class CBInternImage(_MMBackbone, composite.CBInternImage):
    """`internimage.composite.CBInternImage`: a pair of tuples of feature maps, of the first and second backbone."""

    def _plain(self) -> list[backbone.InternImage]:
        return list(self.cb_modules)

    def _part_of(self, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
        if hasattr(module, "patch_embed"):
            return state
        without_stem = {key: value for key, value in state.items() if not key.startswith("patch_embed.")}
        return without_stem | {key: value for key, value in module.state_dict().items() if key.startswith("gamma")}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class CustomLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rates by the rule of the released recipes (`internimage.optim.mm_param_scales`).

    `paramwise_cfg` holds the rule's arguments. A model with a `decode_head` gets the segmentation variant.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        options = {"segmentation": hasattr(model, "decode_head")} | dict(self.paramwise_cfg)
        _check_options(options)
        base_lr = self.optimizer_cfg["lr"]
        decay = self.optimizer_cfg.get("weight_decay", 0.0)
        parameters = dict(model.named_parameters())
        groups: dict[tuple[float, bool], dict] = {}
        for name, (scale, decays) in mm_param_scales(parameters.items(), **options).items():
            settings = {"lr": base_lr * scale, "lr_scale": scale, "weight_decay": decay if decays else 0.0}
            group = groups.setdefault((scale, decays), {"params": [], **settings})
            group["params"].append(parameters[name])
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": list(groups.values())})
        return OPTIM_WRAPPERS.build({**self.optim_wrapper_cfg, "optimizer": optimizer})


def _check_options(options: Mapping) -> None:
    known = inspect.signature(mm_param_scales).parameters
    names = {name: p.default is p.empty for name, p in known.items() if p.kind is p.KEYWORD_ONLY}
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise UserError(f"paramwise_cfg has no key {name!r}; did you mean {near[0]!r}?")
    if missing := [name for name, required in names.items() if required and name not in options]:
        raise UserError(f"paramwise_cfg needs {', '.join(missing)} as well; see internimage.optim.mm_param_scales")


def _convert_detectors(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Make a detector or segmentor with one of these backbones accept released checkpoints."""
    if name == "backbone" and isinstance(module, _MMBackbone):
        install_layout_hook(parent)


register_module_module_registration_hook(_convert_detectors)
