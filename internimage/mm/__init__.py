"""InternImage in OpenMMLab: importing this package registers it (in configurations, by `custom_imports`).

It registers, for mmengine and so for mmdet, mmseg, mmdet3d and mmpose:

- the backbones `InternImage`, `FlashInternImage` and `CBInternImage`, and the optimizer-wrapper constructor
  `CustomLayerDecayOptimizerConstructor`, in the root registries, where these packages look up unknown names;
- the heads of the released detectors and segmentors (`dino`, `mask2former`), if mmdet and mmseg are installed;
- a conversion: every model with such a backbone converts released checkpoints when it loads them, and checks files.

With mmcv-lite it also supplies `mmcv._ext`. Then import it before any package that imports
`mmcv.ops`, such as mmdet and mmseg.
"""

import importlib
import os
import warnings
from importlib.util import find_spec

import torch

from . import mmcv_ext

if not torch.cuda.is_available():  # mmengine imports DeepSpeed wherever it is installed, which would print a warning
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
mmcv_ext.install()

from . import checkpoints  # noqa: E402 - mmcv.ops needs its compiled module
from .registration import CBInternImage, FlashInternImage, InternImage  # noqa: E402

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]


def _register_heads() -> None:
    """Register the modules that the released models add to mmdet and mmseg, if these are installed."""
    for module, frameworks in {"dino": ["mmdet"], "mask2former": ["mmdet", "mmseg"]}.items():
        if all(find_spec(framework) for framework in frameworks):
            try:
                importlib.import_module(f".{module}", __name__)
            except (ImportError, AssertionError) as error:  # an incomplete installation, or another mmcv than asked for
                warnings.warn(f"the models in {__name__}.{module} are not registered: {error}", stacklevel=2)


mmcv_ext.speed_up_attention()
checkpoints.read_through_our_loader()
_register_heads()
