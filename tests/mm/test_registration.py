"""`custom_imports=["internimage.mm"]` is all that a configuration outside the repository needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BUILD = """
import importlib.abc, json, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in json.loads(sys.argv[1]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
find_spec = importlib.util.find_spec
hidden = json.loads(sys.argv[1])
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find_spec(name, *rest)
sys.meta_path.insert(0, Hidden())

from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
import torch
built = {}
for path in sys.argv[2:]:
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    with torch.device("meta"):
        model = MODELS.build(config.model)
    built[type(model).__name__] = f"{type(model.backbone).__module__}.{type(model.backbone).__name__}"
assert OPTIM_WRAPPER_CONSTRUCTORS.get("CustomLayerDecayOptimizerConstructor")
found = [name for name in ("mmdet.CBDINO", "mmdet.InternImageDINOHead", "mmdet.UnnormalizedPixelDecoder",
                           "mmseg.EncoderDecoderMask2Former") if name.split(".")[0] not in hidden and MODELS.get(name)]
print(json.dumps([built, found]))
"""

DETECTOR = """
_base_ = "{mmdet}/.mim/configs/_base_/models/mask-rcnn_r50_fpn.py"
custom_imports = dict(imports=["internimage.mm"])
default_scope = "mmdet"
model = dict(
    backbone=dict(_delete_=True, type="InternImage", channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8]),
    neck=dict(in_channels=[16, 32, 64, 128]),
)
"""
SEGMENTOR = """
_base_ = "{mmseg}/.mim/configs/_base_/models/upernet_r50.py"
custom_imports = dict(imports=["internimage.mm"])
default_scope = "mmseg"
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(_delete_=True, type="InternImage", channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8]),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
    auxiliary_head=dict(in_channels=64),
)
"""


@pytest.mark.parametrize(
    ("hidden", "models", "others"),
    [
        ([], ["MaskRCNN", "EncoderDecoder"], 4),
        (["mmseg"], ["MaskRCNN"], 2),
        (["mmdet"], ["EncoderDecoder"], 0),
    ],
    ids=["both", "mmdet alone", "mmseg alone"],
)
def test_models_with_our_backbones_are_built_without_the_repository(hidden, models, others, tmp_path):
    import importlib.util

    folders = {name: str(Path(importlib.util.find_spec(name).origin).parent) for name in ("mmdet", "mmseg")}
    texts = {"MaskRCNN": DETECTOR, "EncoderDecoder": SEGMENTOR}
    for name in models:
        (tmp_path / f"{name}.py").write_text(texts[name].format(**folders))
    for package in ("internimage", "ops_dcnv3"):  # what an installed wheel has
        (tmp_path / "site" / package).parent.mkdir(exist_ok=True)
        (tmp_path / "site" / package).symlink_to(ROOT / package)
    command = [sys.executable, "-c", BUILD, json.dumps(hidden), *(f"{name}.py" for name in models)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    built, found = json.loads(ended.stdout.splitlines()[-1])
    assert built == dict.fromkeys(models, "internimage.mm.registration.InternImage")
    assert len(found) == others
