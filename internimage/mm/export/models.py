"""What the exporter needs from a detector or segmentor: its module, its images and how to compare.

Metadata have the keys of `classification/export.py` and those that `predict_onnx.py` also needs.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from internimage.errors import UserError
from internimage.export.cli import image_size
from internimage.export.formats import find_format
from internimage.export.spec import Check, Exportable, spread_sampling_points
from internimage.mm.predictor import load_model

from .boxes import suppress_all
from .compare import detection_error, matched_detections, segmentation_error
from .dino import DINO
from .images import default_size, make_samples, preprocessing, read_pictures
from .rcnn import RCNN
from .segmentors import Segmentor

__all__ = ["Parts", "build_model", "detector_parts", "segmentor_parts"]

Prepare = Callable[[Image.Image, dict, tuple[int, int]], tuple]  # as `predict_onnx.prepare`

_CALIBRATION_IMAGES = 200


def build_model(config: Config, checkpoint: str | None) -> nn.Module:
    """The detector or segmentor of a configuration, with weights of a checkpoint or random ones.

    Raises:
        UserError, CheckpointError: no such checkpoint, or it does not fit.
    """
    if checkpoint:
        return load_model(config, checkpoint)
    init_default_scope(config.get("default_scope", "mmengine"))
    MMLogger.get_current_instance().setLevel("WARNING")  # otherwise it logs how each weight was drawn
    torch.manual_seed(0)
    config.model.backbone.pop("init_cfg", None)
    model = revert_sync_batchnorm(MODELS.build(config.model)).eval()
    model.init_weights()
    spread_sampling_points(model)
    _spread_predictions(model)
    dataset = config.test_dataloader.dataset
    model.dataset_meta = dict(DATASETS.build({**dataset, "lazy_init": True}).metainfo)
    model.cfg = config
    return model


@torch.no_grad()
def _spread_predictions(model: nn.Module) -> None:
    """Draw the layers of a new model's heads that start near zero as large as other layers.

    Otherwise no score passes a threshold and no box moves, and a comparison of the results would prove nothing.
    """
    own = set(model.backbone.modules())
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer not in own:
            usual = layer.weight[0].numel() ** -0.5
            if layer.weight.std() < 0.4 * usual:  # layers that should not be small have at least 0.6
                nn.init.normal_(layer.weight, std=usual)


def _metadata(model: nn.Module, task: str, meta: Mapping) -> dict[str, str]:
    words = {"task": task, **meta, "class_names": list(model.dataset_meta.get("classes") or [])}
    if isinstance(palette := model.dataset_meta.get("palette"), Sequence) and not isinstance(palette, str):
        words["palette"] = np.asarray(palette).tolist()
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in words.items()}


class Parts(NamedTuple):
    """The model to write, how to check the file, and images `(1, 3, H, W)` for --int8."""

    exportable: Exportable
    check: Check
    calibration: list[Tensor]


def _parts(
    model: nn.Module, module: nn.Module, args: argparse.Namespace, prepare: Prepare, task: str, words: Mapping
) -> Parts:
    """The rewritten `module` of a framework's `model`, with images of --images, or photographs, for its check."""
    meta = preprocessing(model.cfg)
    size = image_size(args, default_size(meta, model.cfg), meta["multiple"])
    pictures = read_pictures(args.images, _CALIBRATION_IMAGES if args.int8 else 3)

    def tensor(picture: Image.Image, shape: tuple[int, int]) -> Tensor:
        return torch.from_numpy(prepare(picture, meta, shape).images)

    if args.static:
        samples = [torch.cat([tensor(pictures[index % len(pictures)], size) for index in range(args.batch)])]
    elif find_format(args.format).one_size:
        samples = [tensor(pictures[0], size), torch.cat([tensor(picture, size) for picture in pictures[:3]])]
    else:
        samples = make_samples(pictures, tensor, size, meta["multiple"])
    metadata = _metadata(model, task, {**meta, "size": size, **words})
    exportable = Exportable(module.eval(), samples[0], (), metadata, not args.static)
    check = Check(samples, "photographs" if args.images is None else "real")
    return Parts(exportable, check, [tensor(picture, size) for picture in pictures] if args.int8 else [])


def _check_queries(model: nn.Module, samples: list[Tensor]) -> None:
    """Raise `UserError` if an image has fewer pixels in its feature maps than the decoder has queries."""
    first = model.backbone.out_indices[0]
    first = first[0] if isinstance(first, Sequence) else first  # of a composite backbone
    strides = [4 * 2 ** (first + level) for level in range(model.num_feature_levels)]
    for height, width in (images.shape[2:] for images in samples):
        count = sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides)
        if count < model.num_queries:
            raise UserError(
                f"images of {height}x{width} give {count} places for {model.num_queries} queries; set a larger --size"
            )


def _translations() -> dict:
    from .onnx import translations  # needs onnxscript, which is optional

    return translations()


def detector_parts(model: nn.Module, args: argparse.Namespace, prepare: Prepare) -> Parts:
    """What the exporter needs from a detector of `build_model`. Raises `UserError` if it cannot be exported."""
    if hasattr(model, "roi_head"):
        config = model.roi_head.test_cfg
        if (kind := config.nms.get("type", "nms")) != "nms":
            raise UserError(f"cannot export {kind}; set model.test_cfg.rcnn.nms.type=nms")
        if args.format == "executorch":
            raise UserError(
                "--format executorch does not support R-CNN detectors: it has no kernels for non-maximum suppression "
                "and RoIAlign; use another format, or DINO, which needs neither"
            )
        module = RCNN(model)
    elif hasattr(model, "encoder"):
        config = model.bbox_head.test_cfg
        module = DINO(model)
    else:
        raise UserError(f"cannot export {type(model).__name__}; supported: Mask R-CNN, Cascade Mask R-CNN and DINO")
    names = ("boxes", "labels")
    words = {
        "threshold": 0.3,
        "boxes": "x1, y1, x2, y2 in pixels of the input, and score; places without detection have label -1",
    }
    if getattr(module, "has_masks", False):
        names = (*names, "masks")
        words |= {"masks": "probabilities over each box", "mask_threshold": config.mask_thr_binary}
    parts = _parts(model, module, args, prepare, "detection", words)
    if isinstance(module, DINO):
        _check_queries(model, parts.check.samples)
    parts.exportable.output_names = names
    parts.exportable.translations = _translations
    parts.exportable.decompositions = lambda: {torch.ops.internimage.suppress.default: suppress_all}
    parts.check.error = functools.partial(detection_error, threshold=config.get("score_thr", 0.0))
    parts.check.matched = matched_detections
    return parts


def segmentor_parts(model: nn.Module, args: argparse.Namespace, prepare: Prepare) -> Parts:
    """What the exporter needs from a segmentor; as `detector_parts`."""
    if model.out_channels == 1:
        raise UserError("cannot export a segmentor of one channel; give its head num_classes=2 and out_channels=2")
    if model.test_cfg.mode == "slide":
        print(
            f"The configuration tests in windows of {model.test_cfg.crop_size}; the exported model takes whole images."
        )
    parts = _parts(model, Segmentor(model), args, prepare, "segmentation", {})
    parts.exportable.output_names = ("labels", "scores")
    parts.check.error = segmentation_error
    return parts
