"""The configuration of InternImage in transformers, with the names of the released `config.json` files."""

import os
from dataclasses import fields
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..backbone import InternImage
from ..flash import FlashInternImage
from ..imagenet import class_names
from ..zoo import releases

__all__ = ["AUTO_MAP", "InternImageConfig", "copy_nothing"]

# What `trust_remote_code=True` runs: this package. The names are those in the released repositories.
_REMOTE, _REMOTE_CODE = "modeling_internimage", "from internimage.hf import *  # pip install internimage[hf]\n"
_NAMES = ("Config", "Model", "ModelForImageClassification", "Backbone", "ImageProcessor")
AUTO_MAP = {f"Auto{name}": f"{_REMOTE}.InternImage{name}" for name in _NAMES}
# `register_for_auto_class` makes transformers copy a package's files; our folders have a file that imports the package.
copy_nothing = classmethod(lambda cls, auto_class="": None)


class InternImageConfig(BackboneConfigMixin, PreTrainedConfig):
    """Arguments of `InternImage`, under its names.

    Args:
        core_op: `DCNv3` (`DCNv3_pytorch` is the same here), or `DCNv4` for `FlashInternImage`, to which
            `dcn_output_bias` and `mlp_fc2_bias` belong.
        num_classes: another name of `num_labels`, which is preferred; defaults to 1000. A released configuration (with
            `auto_map`, without `id2label`) gets the names of ImageNet's classes.
        out_features: stages that `InternImageBackbone` returns, of `stem` (stride 4) and `stage1` (4) to `stage4` (32);
            or their numbers as `out_indices`. Defaults to the last. Raises `ValueError` for others.
    """

    register_for_auto_class = copy_nothing
    model_type = "internimage"
    attribute_map = {"num_channels": "in_chans", "num_classes": "num_labels"}

    core_op: str = "DCNv3"
    channels: int = 64
    depths: list[int] | tuple[int, ...] = (4, 4, 18, 4)
    groups: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    in_chans: int = 3
    mlp_ratio: float | int = 4.0
    drop_rate: float | int = 0.0
    drop_path_rate: float | int = 0.0
    drop_path_type: str = "linear"
    act_layer: str = "GELU"
    norm_layer: str = "LN"
    layer_scale: float | int | None = None
    offset_scale: float | int = 1.0
    post_norm: bool = False
    res_post_norm: bool = False
    cls_scale: float | int = 1.5
    with_cp: bool = False
    dw_kernel_size: int | None = None
    use_clip_projector: bool = False
    level2_post_norm: bool = False
    level2_post_norm_block_ids: list[int] | tuple[int, ...] | None = None
    center_feature_scale: bool = False
    remove_center: bool = False
    dcn_output_bias: bool = False
    mlp_fc2_bias: bool = False

    def __post_init__(self, num_classes: int | None = None, **kwargs) -> None:
        if (kwargs.get("num_labels") or num_classes or 0) < 0:
            raise ValueError(f"num_labels must be at least 0; got {kwargs.get('num_labels') or num_classes}")
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 1000 if num_classes is None else num_classes
            if "auto_map" in kwargs and (names := class_names(kwargs["num_labels"])):
                self.id2label = dict(enumerate(names))
                self.label2id = {name: index for index, name in self.id2label.items()}
        self.stage_names = ["stem", *(f"stage{index + 1}" for index in range(len(self.depths)))]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> tuple[dict, dict]:
        """As transformers', which would take a folder without config.json for InternImage-T. Raises `OSError`."""
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            hint = "convert a checkpoint with python -m internimage.hf.convert"
            raise OSError(f"{pretrained_model_name_or_path} has no config.json; {hint}")
        return values, rest

    def build(self, **arguments: object) -> nn.Module:
        """The model of this configuration; `arguments` replace its own. Raises `ValueError` if they do not fit."""
        names = {field.name for field in fields(self)} - {field.name for field in fields(PreTrainedConfig)}
        own = {name: getattr(self, name) for name in names} | {"num_classes": self.num_labels} | arguments
        if self.core_op == "DCNv4":
            return FlashInternImage(**own)
        if self.core_op == "DCNv3_pytorch":
            own["core_op"] = "DCNv3"
        del own["dcn_output_bias"], own["mlp_fc2_bias"]
        return InternImage(**own)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "num_classes": self.num_labels}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Write `config.json`, the file for `trust_remote_code`, and a model card if there is no README.md."""
        self.auto_map = AUTO_MAP
        super().save_pretrained(save_directory, **kwargs)
        Path(save_directory, f"{_REMOTE}.py").write_text(_REMOTE_CODE, encoding="utf-8")
        if not (card := Path(save_directory, "README.md")).exists():
            card.write_text(self.model_card(), encoding="utf-8")

    def model_card(self) -> str:
        """README.md, with the published facts of the released model in `name_or_path`, if it is one."""
        name = Path(self.name_or_path).name
        values = {
            "title": f": {name}" if name else "",
            "base": "",
            "name": "YOUR_NAME/YOUR_MODEL",
            "facts": "Not known",
        }
        for release in releases():
            if name and name in (release.name, Path(release.hugging_face).name):
                facts = ", ".join(f"{key} {value}" for key, value in release.facts.items())
                values["facts"] = f"Published for the model that the weights come from: {facts}"
                if release.hugging_face:
                    values |= {"base": f"base_model: {release.hugging_face}\n", "name": release.hugging_face}
        return Path(__file__).with_name("card.md").read_text(encoding="utf-8").format(config=self, **values)
