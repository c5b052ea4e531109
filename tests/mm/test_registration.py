"""`custom_imports=["internimage.mm"]` is all that a configuration outside the repository needs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Each case in a child of one interpreter, which has imported what all need and neither framework.
BUILD = """
import importlib.abc, importlib.util, json, os, sys
import mmengine.runner, timm, torch

class Hidden(importlib.abc.MetaPathFinder):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def build(hidden, paths):
    from mmengine.config import Config
    from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope

    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    sys.meta_path.insert(0, Hidden(hidden))
    built = {}
    for path in paths:
        config = Config.fromfile(path)
        init_default_scope(config.default_scope)
        with torch.device("meta"):
            model = MODELS.build(config.model)
        built[type(model).__name__] = f"{type(model.backbone).__module__}.{type(model.backbone).__name__}"
    assert OPTIM_WRAPPER_CONSTRUCTORS.get("CustomLayerDecayOptimizerConstructor")
    names = ("mmdet.CBDINO", "mmdet.InternImageDINOHead", "mmdet.UnnormalizedPixelDecoder",
             "mmseg.EncoderDecoderMask2Former")
    return built, [name for name in names if name.split(".")[0] not in hidden and MODELS.get(name)]

assert not {"mmdet", "mmseg", "mmcv", "internimage"} & set(sys.modules)
for number, (hidden, paths) in enumerate(json.loads(sys.argv[1])):
    if os.fork() == 0:
        with open(f"{number}.json", "w") as file:
            json.dump(build(hidden, paths), file)
        os._exit(0)
    os.wait()
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


# What cannot be imported, the models that are built then, and how many modules of ours are registered beside backbones.
CASES = {
    "both": ([], ["MaskRCNN", "EncoderDecoder"], 4),
    "mmdet alone": (["mmseg"], ["MaskRCNN"], 2),
    "mmseg alone": (["mmdet"], ["EncoderDecoder"], 0),
}


def test_models_with_our_backbones_are_built_without_the_repository(tmp_path):
    folders = {name: str(Path(importlib.util.find_spec(name).origin).parent) for name in ("mmdet", "mmseg")}
    for name, text in (("MaskRCNN", DETECTOR), ("EncoderDecoder", SEGMENTOR)):
        (tmp_path / f"{name}.py").write_text(text.format(**folders))
    (tmp_path / "site").mkdir()
    for package in ("internimage", "ops_dcnv3"):  # what an installed wheel has
        (tmp_path / "site" / package).symlink_to(ROOT / package)
    cases = [(hidden, [f"{name}.py" for name in models]) for hidden, models, _ in CASES.values()]
    command = [sys.executable, "-c", BUILD, json.dumps(cases)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for number, (name, (_, models, others)) in enumerate(CASES.items()):
        result = (tmp_path / f"{number}.json").read_text()
        assert result, (name, ended.stderr)
        built, found = json.loads(result)
        assert built == dict.fromkeys(models, "internimage.mm.registration.InternImage"), name
        assert len(found) == others, name
