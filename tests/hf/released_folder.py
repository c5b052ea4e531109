"""Folders in the layout of the released repositories, built by hand."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from golden import fill
from internimage import FlashInternImage, InternImage

SMALL = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8], "layer_scale": 1e-5, "post_norm": True}
# The released config.json files have these, under these names.
RELEASED = {
    **{"act_layer": "GELU", "center_feature_scale": False, "channels": 64, "cls_scale": 1.5, "core_op": "DCNv3"},
    **{"depths": [4, 4, 18, 4], "drop_path_rate": 0.1, "drop_path_type": "linear", "drop_rate": 0.0},
    **{"dw_kernel_size": None, "groups": [4, 8, 16, 32], "layer_scale": None, "level2_post_norm": False},
    **{"level2_post_norm_block_ids": None, "mlp_ratio": 4.0, "norm_layer": "LN", "num_classes": 1000},
    **{"offset_scale": 1.0, "post_norm": False, "remove_center": False, "res_post_norm": False},
    **{"use_clip_projector": False, "with_cp": False},
}
_REMOTE = "modeling_internimage.InternImageModel"


def write_released(folder: Path, state: dict, **values: object) -> Path:
    """Write a folder as the released repositories are: other names for layer scales, everything below `model.`."""
    folder.mkdir(exist_ok=True)
    auto_map = {
        "AutoConfig": "configuration_internimage.InternImageConfig",
        "AutoModel": _REMOTE,
        "AutoModelForImageClassification": f"{_REMOTE}ForImageClassification",
    }
    config = {**RELEASED, "architectures": ["InternImageModel"], "auto_map": auto_map, "model_type": "internimage"}
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"} | values))
    renamed = {f"model.{key.replace('.gamma', '.layer_scale')}": value for key, value in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def build(**values: object) -> nn.Module:
    """The model of a configuration, with deterministic weights."""
    flash = values.get("core_op") == "DCNv4"
    return fill((FlashInternImage if flash else InternImage)(**values))
