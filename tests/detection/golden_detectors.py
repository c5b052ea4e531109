"""The two stored detectors of the original project: how to build them on mmdet 3, their inputs and outputs.

`heads_*.npz` hold the outputs, `heads_detection.json.gz` configs (in the old vocabulary), keys, inputs and image data.
"""

import gzip
import json
from typing import NamedTuple

import detection.models  # noqa: F401 - isort: skip - before mmdet
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from torch import Tensor, nn

from golden import DATA, filled, image

register_all_modules()


class GoldenDetector(NamedTuple):
    """A detector with the stored weights, its padded batch, one data sample per image and the stored outputs."""

    model: nn.Module
    images: Tensor
    samples: list[DetDataSample]
    outputs: dict[str, np.ndarray]
    spec: dict


def mask_rcnn(old: dict) -> dict:
    """Config of Mask R-CNN, whose vocabulary did not change."""
    return {key: value for key, value in old.items() if key != "pretrained"}


def dino(old: dict) -> dict:
    """Config of DINO, whose transformer moved from the head to the detector."""
    head = dict(old["bbox_head"])
    transformer, dn_cfg = head.pop("transformer"), head.pop("dn_cfg")
    encoder, decoder = transformer["encoder"], transformer["decoder"]
    width = encoder["transformerlayers"]["attn_cfgs"]["embed_dims"]
    ffn = {"embed_dims": width, "feedforward_channels": 2048, "ffn_drop": 0.0}
    sampling = {"embed_dims": width, "num_levels": 4, "dropout": 0.0}
    attention = {"embed_dims": width, "num_heads": 8, "dropout": 0.0}
    noise = dn_cfg["noise_scale"]
    costs = old["train_cfg"]["assigner"]
    return {
        "type": "DINO",
        "backbone": old["backbone"],
        "neck": old["neck"],
        "num_queries": head.pop("num_query"),
        "as_two_stage": head.pop("as_two_stage"),
        "with_box_refine": head.pop("with_box_refine"),
        "encoder": {
            "num_layers": encoder["num_layers"],
            "layer_cfg": {"self_attn_cfg": sampling, "ffn_cfg": ffn},
        },
        "decoder": {
            "num_layers": decoder["num_layers"],
            "return_intermediate": True,
            "layer_cfg": {"self_attn_cfg": attention, "cross_attn_cfg": sampling, "ffn_cfg": ffn},
            "post_norm_cfg": None,
        },
        "positional_encoding": {key: value for key, value in head.pop("positional_encoding").items() if key != "type"}
        | {"offset": 0.0},
        "bbox_head": {key: value for key, value in head.items() if key != "in_channels"},
        "dn_cfg": {
            "label_noise_scale": noise["label"],
            "box_noise_scale": noise["box"],
            "group_cfg": dn_cfg["group_cfg"],
        },
        "train_cfg": {
            "assigner": {
                "type": costs["type"],
                "match_costs": [costs["cls_cost"], costs["reg_cost"], costs["iou_cost"]],
            }
        },
        "test_cfg": old["test_cfg"],
    }


def golden_detector(name: str) -> GoldenDetector:
    """`dino_mini` or `mask_rcnn_mini`, its weights made under the old keys and loaded as a released file is."""
    with gzip.open(DATA / "heads_detection.json.gz") as file:
        spec = json.load(file)[name]
    config = {"dino_mini": dino, "mask_rcnn_mini": mask_rcnn}[name](spec["model"])
    model = MODELS.build(ConfigDict(config)).eval()
    model.load_state_dict(filled(spec["keys"]))  # strict; the layout hook converts
    inputs = spec["inputs"]
    images = torch.zeros(inputs["batch_shape"])
    samples = []
    for index, (seed, (height, width)) in enumerate(zip(inputs["seeds"], inputs["sizes"])):
        images[index, :, :height, :width] = image(3, height, width, seed=seed)
        meta = spec["img_metas"][index]
        shapes = {key: tuple(meta[key][:2]) for key in ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")}
        samples.append(DetDataSample(metainfo={**shapes, "scale_factor": tuple(meta["scale_factor"][:2])}))
    return GoldenDetector(model, images, samples, dict(np.load(DATA / f"heads_{name}.npz")), spec)
