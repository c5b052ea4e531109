"""The released models: their names and architectures, and `create_model`.

Sizes T to G: InternImage (Wang et al., CVPR 2023, table 1 and appendix). FlashInternImage: Xiong et al., CVPR 2024.
"""

import difflib
import os

from torch import nn

from .backbone import InternImage
from .checkpoint import load_exact, load_pretrained, read_state_dict
from .errors import UserError
from .flash import FlashInternImage
from .meta_former import InternImageMetaFormer
from .zoo import checkpoint_path, local_checkpoint

__all__ = ["VARIANTS", "create_model", "list_models", "model_class"]

_T = {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)}
_S = {"channels": 80, "depths": (4, 4, 21, 4), "groups": (5, 10, 20, 40), "layer_scale": 1e-5, "post_norm": True}
_B = {**_S, "channels": 112, "groups": (7, 14, 28, 56)}
_L = {**_S, "channels": 160, "depths": (5, 5, 22, 5), "groups": (10, 20, 40, 80), "offset_scale": 2.0}
_XL = {**_L, "channels": 192, "depths": (5, 5, 24, 5), "groups": (12, 24, 48, 96)}
_LARGEST = {"dw_kernel_size": 5, "level2_post_norm": True, "center_feature_scale": True, "use_clip_projector": True}
_H = {
    **_LARGEST,
    "channels": 320,
    "depths": (6, 6, 32, 6),
    "groups": (10, 20, 40, 80),
    "res_post_norm": True,
    "level2_post_norm_block_ids": range(5, 30, 6),  # after every sixth block
}
_G = {
    **_LARGEST,
    "channels": 512,
    "depths": (2, 2, 48, 4),
    "groups": (16, 32, 64, 128),
    "post_norm": True,
    "level2_post_norm_block_ids": range(5, 48, 6),
}
_IN1K, _IN22K, _INAT18 = 1000, 21841, 8142

VARIANTS: dict[str, dict] = {
    "internimage_t_1k_224": {**_T, "num_classes": _IN1K},
    "internimage_s_1k_224": {**_S, "num_classes": _IN1K},
    "internimage_b_1k_224": {**_B, "num_classes": _IN1K},
    "internimage_l_22kto1k_384": {**_L, "num_classes": _IN1K},
    "internimage_xl_22kto1k_384": {**_XL, "num_classes": _IN1K},
    "internimage_h_22kto1k_384": {**_H, "num_classes": _IN1K},
    "internimage_h_22kto1k_640": {**_H, "num_classes": _IN1K},
    "internimage_g_22kto1k_512": {**_G, "num_classes": _IN1K},
    "internimage_l_22k_192to384": {**_L, "num_classes": _IN22K},
    "internimage_xl_22k_192to384": {**_XL, "num_classes": _IN22K},
    "internimage_h_jointto22k_384": {**_H, "num_classes": _IN22K},
    "internimage_g_pretrainto22k_384": {**_G, "num_classes": _IN22K},
    "internimage_h_22ktoinat18_384": {**_H, "num_classes": _INAT18},
    "flash_intern_image_t_1k_224": {**_T, "num_classes": _IN1K},
    "flash_intern_image_s_1k_224": {**_S, "dw_kernel_size": 3, "num_classes": _IN1K},
    "flash_intern_image_b_1k_224": {**_B, "dw_kernel_size": 3, "offset_scale": 0.5, "num_classes": _IN1K},
    "flash_intern_image_l_22kto1k_384": {
        **_L,
        "dw_kernel_size": 3,
        "dcn_output_bias": True,
        "mlp_fc2_bias": True,
        "num_classes": _IN1K,
    },
}


def list_models() -> list[str]:
    """Names of the models that `create_model` builds."""
    return list(VARIANTS)


def model_class(name: str) -> type[InternImage]:
    """The class of a released model."""
    if name.startswith("flash"):
        return FlashInternImage
    return InternImageMetaFormer if "inat18" in name else InternImage


def create_model(name: str, pretrained: bool | str | os.PathLike = False, **overrides) -> nn.Module:
    """Build a released model.

    Args:
        name: one of `list_models()`.
        pretrained: True to download and load the released weights; a path, a URL or a released name to load
            those; False for random weights.
        overrides: keyword arguments of `InternImage` that replace those of the variant: `num_classes=37` for a new
            classifier, `features_only=True` or `out_indices=(1, 2, 3)` for feature maps, `drop_path_rate=0.1`, ...

    Returns:
        The model, in training mode. Without overrides the file must have every weight; with overrides the rules of
        `load_pretrained` apply, and each part that is not loaded is printed.

    Raises:
        UserError: an unknown name, or a failed download.
        CheckpointError: a file that does not fit.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "python -m internimage.zoo lists them"
        raise UserError(f"unknown model {name!r}; {hint}")
    model = model_class(name)(**{**VARIANTS[name], **overrides})
    if pretrained:
        path = checkpoint_path(name) if pretrained is True else local_checkpoint(pretrained)
        state_dict = read_state_dict(path)
        if overrides:
            for notice in load_pretrained(model, state_dict):
                print(f"{name}: {notice}")
        else:
            load_exact(model, state_dict)
    return model
