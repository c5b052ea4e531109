"""The two stored segmentors of the original project: how to build them on mmseg 1, their inputs and outputs.

`seg_*_mini.npz` hold the outputs, `seg_goldens.json.gz` configs (in the old vocabulary), keys, inputs and image data.
"""

import copy
from typing import NamedTuple

import segmentation.models  # noqa: F401 - isort: skip - before mmseg
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import Tensor

from golden import DATA, filled, image
from mm_recipes import load
from mm_recipes.segmentation import config

register_all_modules()


class GoldenSegmentor(NamedTuple):
    """A segmentor with the stored weights, its padded batch, image 0 alone, its data and the stored outputs."""

    model: torch.nn.Module
    images: Tensor
    first: Tensor
    meta: dict
    outputs: dict[str, np.ndarray]
    spec: dict

    def sample(self, **changes: object) -> SegDataSample:
        return SegDataSample(metainfo=self.meta | changes)


def _config(name: str, old: dict) -> dict:
    """Our configuration that the golden was derived from, made as small as the golden is."""
    model = copy.deepcopy(config(name)["model"])
    model["backbone"] = old["backbone"] | {"core_op": "DCNv3"}  # goldens have a plain backbone under either head
    head, small = model["decode_head"], old["decode_head"]
    head |= {key: small[key] for key in ("in_channels", "num_classes")}
    if "pixel_decoder" in head:
        head["num_queries"] = small["num_queries"]
        head["loss_cls"]["class_weight"] = small["loss_cls"]["class_weight"]
        head["pixel_decoder"]["encoder"]["num_layers"] = small["pixel_decoder"]["encoder"]["num_layers"]
        head["transformer_decoder"]["num_layers"] = small["transformer_decoder"]["num_layers"]
    else:
        head["channels"] = small["channels"]
        auxiliary = ("in_channels", "channels", "num_classes")
        model["auxiliary_head"] |= {key: old["auxiliary_head"][key] for key in auxiliary}
    return model | {"data_preprocessor": None, "test_cfg": {"mode": "whole"}}


def golden_segmentor(name: str) -> GoldenSegmentor:
    """`upernet_mini` or `mask2former_mini`, its weights made under the old keys and loaded as a released file is."""
    spec = load("seg_goldens.json.gz")[name]
    init_default_scope("mmseg")
    settings = _config(spec["upstream_config"].removeprefix("segmentation/configs/"), spec["model"])
    model = revert_sync_batchnorm(MODELS.build(Config({"model": settings}).model)).eval()
    model.load_state_dict(filled(spec["keys"]))  # strict; the layout hook converts
    inputs = spec["inputs"]
    images = torch.zeros(inputs["batch_shape"])
    for index, (seed, (height, width)) in enumerate(zip(inputs["seeds"], inputs["sizes"])):
        images[index, :, :height, :width] = image(3, height, width, seed=seed)
    height, width = inputs["sizes"][0]
    meta = {key: tuple(spec["img_metas"][0][key][:2]) for key in ("img_shape", "ori_shape")}
    outputs = dict(np.load(DATA / f"seg_{name}.npz"))
    return GoldenSegmentor(model, images, images[:1, :, :height, :width], meta, outputs, spec)
