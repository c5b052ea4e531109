"""Build `internimage` models from the MODEL section of the configuration."""

from torch import nn
from yacs.config import CfgNode

import internimage
from internimage.errors import UserError

__all__ = ["build_model", "model_arguments"]

# MODEL.TYPE (any case) -> class, section of the configuration with its keyword arguments in capitals
_TYPES = {
    "intern_image": (internimage.InternImage, "INTERN_IMAGE"),
    "intern_image_meta_former": (internimage.InternImageMetaFormer, "INTERN_IMAGE"),
    "flash_intern_image": (internimage.FlashInternImage, "FLASH_INTERN_IMAGE"),
}


def model_arguments(config: CfgNode, num_classes: int | None = None) -> tuple[type[nn.Module], dict]:
    """The class of `config.MODEL` and its arguments; `num_classes` defaults to `MODEL.NUM_CLASSES`."""
    model = config.MODEL
    kind, section = _TYPES[model.TYPE.lower()]
    return kind, {
        "num_classes": num_classes or model.NUM_CLASSES,
        "in_chans": model.IN_CHANS,
        "drop_rate": model.DROP_RATE,
        "drop_path_rate": model.DROP_PATH_RATE,
        "drop_path_type": model.DROP_PATH_TYPE,
        "with_cp": config.TRAIN.USE_CHECKPOINT,
        **{key.lower(): value for key, value in model[section].items()},
    }


def build_model(config: CfgNode, num_classes: int | None = None) -> nn.Module:
    """Build the classifier that `config.MODEL` describes, with random weights. Arguments as `model_arguments`.

    Raises:
        UserError: arguments that do not fit together.
    """
    kind, arguments = model_arguments(config, num_classes)
    try:
        return kind(**arguments)
    except ValueError as error:
        section = _TYPES[config.MODEL.TYPE.lower()][1]
        raise UserError(f"MODEL.{section} does not describe a model: {error}") from None
