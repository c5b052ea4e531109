"""InternImage in OpenMMLab: importing this package registers it (in a configuration, name it in `custom_imports`).

It makes mmengine, and with it mmdet, mmseg, mmdet3d and mmpose, know

- the backbones `InternImage`, `FlashInternImage` and `CBInternImage`, and the optimizer-wrapper constructor
  `CustomLayerDecayOptimizerConstructor`, in the root registries, where all of these look up what they lack;
- the heads of the released detectors and segmentors (`dino`, `mask2former`), if mmdet and mmseg are installed;
- released checkpoints: every model with such a backbone converts them when it loads them, and files are checked.

It also supplies `mmcv._ext` if only mmcv-lite is installed. In that case import it before any package that imports
`mmcv.ops`, such as mmdet and mmseg.
"""

import importlib
import warnings
from importlib.util import find_spec

from . import mmcv_ext

mmcv_ext.install()

from . import checkpoints  # noqa: E402 - mmcv.ops needs its compiled module
from .registration import CBInternImage, FlashInternImage, InternImage  # noqa: E402

__all__ = ["CBInternImage", "FlashInternImage", "InternImage"]


def _register_heads() -> None:
    """Register what the released models have beyond mmdet and mmseg, for those of the two that are installed."""
    for module, frameworks in {"dino": ["mmdet"], "mask2former": ["mmdet", "mmseg"]}.items():
        if all(find_spec(framework) for framework in frameworks):
            try:
                importlib.import_module(f".{module}", __name__)
            except (ImportError, AssertionError) as error:  # an incomplete installation, or another mmcv than asked for
                warnings.warn(f"without the models in {__name__}.{module}: {error}", stacklevel=2)


mmcv_ext.speed_up_attention()
checkpoints.read_through_our_loader()
_register_heads()
