"""InternImage for transformers 5: importing this package registers it with the Auto classes.

The classes read the released repositories (OpenGVLab/internimage_*) without remote code, and write the same layout;
`internimage.hf.convert` converts checkpoints to such folders and back. Use: docs/transformers.md.
"""

import contextlib
import sys

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import trainer_pt_utils as _trainer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from .configuration import InternImageConfig
from .image_processor import InternImageImageProcessor
from .modeling import InternImageBackbone, InternImageForImageClassification, InternImageModel

__all__ = [
    "InternImageBackbone",
    "InternImageConfig",
    "InternImageForImageClassification",
    "InternImageImageProcessor",
    "InternImageModel",
    "InternImageModelForImageClassification",
]

InternImageModelForImageClassification = InternImageForImageClassification  # its name in the released repositories

AutoConfig.register("internimage", InternImageConfig)
AutoModel.register(InternImageConfig, InternImageModel)
AutoModelForImageClassification.register(InternImageConfig, InternImageForImageClassification)
AutoBackbone.register(InternImageConfig, InternImageBackbone)
AutoImageProcessor.register(InternImageConfig, image_processor_classes={"pil": InternImageImageProcessor})
# Layer scales have other names in the released files; saving renames them back.
register_checkpoint_conversion_mapping("internimage", [WeightRenaming(f"layer_scale{i}", f"gamma{i}") for i in (1, 2)])

# To read its random states, Trainer allows numpy's own functions. `internimage.checkpoint_types` has registered safe
# replacements under the same names; they read these files too, but a mixture of both fails.
for _module in (_trainer, sys.modules.get("transformers.trainer", _trainer)):
    _module.safe_globals = contextlib.nullcontext
