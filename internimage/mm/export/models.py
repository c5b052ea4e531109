"""What the exporter needs of a detector or segmentor: its module, its images and how to compare.

`detection/export.py` and `segmentation/export.py` are made of this. Metadata have the keys of
`classification/export.py` and those that `predict_onnx.py` needs besides.
"""

import argparse
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image
from torch import Tensor, nn

from internimage.errors import UserError
from internimage.export.checks import compare_samples, limits, parity_table, worst_failure
from internimage.export.cli import image_size
from internimage.export.exportable import Exportable, Outputs, spread_sampling_points
from internimage.export.formats import find_format
from internimage.export.progress import phase
from internimage.mm.demo import load_model

from .boxes import suppress_all
from .compare import detection_error, framework_boxes, framework_labels, matched_detections, segmentation_error
from .dino import DINO
from .images import default_size, make_samples, preprocessing, read_pictures
from .rcnn import RCNN
from .segmentors import Segmentor

__all__ = [
    "build_model",
    "detector_exportable",
    "segmentor_exportable",
]

Prepare = Callable[[Image.Image, dict, tuple[int, int]], Tensor]

_CALIBRATION_IMAGES = 200


def build_model(config: Config, checkpoint: str | None) -> nn.Module:
    """The detector or segmentor of a configuration, with weights of a checkpoint or random ones.

    Raises:
        UserError, CheckpointError: no such checkpoint, or it does not fit.
    """
    if checkpoint:
        return load_model(config, checkpoint)
    init_default_scope(config.get("default_scope", "mmengine"))
    MMLogger.get_current_instance().setLevel("WARNING")  # it would tell how each of the weights was drawn
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
    """Draw the layers of a new model's heads that begin at zero or near it as large as other layers.

    Otherwise no score passes a threshold, no box is moved, and a comparison of the results would prove nothing.
    """
    own = set(model.backbone.modules())
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer not in own:
            usual = layer.weight[0].numel() ** -0.5
            if layer.weight.std() < 0.4 * usual:  # layers that are not meant to be small have 0.6 and more
                nn.init.normal_(layer.weight, std=usual)


def _common(model: nn.Module, task: str, meta: Mapping) -> dict[str, str]:
    words = {"task": task, **meta, "class_names": list(model.dataset_meta.get("classes") or [])}
    if isinstance(palette := model.dataset_meta.get("palette"), Sequence) and not isinstance(palette, str):
        words["palette"] = np.asarray(palette).tolist()
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in words.items()}


def _exportable(
    framework_model: nn.Module, args: argparse.Namespace, prepare: Prepare, task: str, **options
) -> Exportable:
    meta = preprocessing(framework_model.cfg)
    multiple = meta["multiple"]
    size = image_size(args, default_size(meta, framework_model.cfg), multiple)
    pictures = read_pictures(args.images, _CALIBRATION_IMAGES if args.int8 else 3)

    def tensor(picture: Image.Image, shape: tuple[int, int]) -> Tensor:
        return torch.from_numpy(prepare(picture, meta, shape).images)

    if args.static:
        samples = [torch.cat([tensor(pictures[index % len(pictures)], size) for index in range(args.batch)])]
    elif find_format(args.format).one_size:
        samples = [tensor(pictures[0], size), torch.cat([tensor(picture, size) for picture in pictures[:3]])]
    else:
        samples = make_samples(pictures, tensor, size, multiple)
    words = {**meta, "size": size, **options.pop("words", {})}
    return Exportable(
        size=size,
        metadata=_common(framework_model, task, words),
        samples=samples,
        dynamic=not args.static,
        multiple=multiple,
        sample_names=["photographs" if args.images is None else "real"] * len(samples),
        calibration=[tensor(picture, size) for picture in pictures] if args.int8 else [],
        **options,
    )


def _compare(exportable: Exportable, name: str, theirs: Callable[..., Outputs], tolerance: float | None) -> None:
    """Print how far the rewritten module is from the framework's results. Raises `UserError` if it is too far."""
    allowed, limit = limits(tolerance)
    with phase(f"Comparing the rewritten post-processing with {name}'s"):
        rows = compare_samples(exportable, theirs, limit)
    print(f"Against {name}'s own test path, in PyTorch\n\n{parity_table(rows)}\n")
    worst = worst_failure(rows, allowed)
    if worst is not None:
        raise UserError(f"the rewritten post-processing differs from {name}'s by {worst:.1e}, more than {allowed:.1e}")


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
    from .onnx import translations  # needs onnxscript, which other formats do without

    return translations()


def detector_exportable(model: nn.Module, args: argparse.Namespace, prepare: Prepare) -> Exportable:
    """What the exporter needs of a detector.

    Args:
        model: from `build_model`.
        args: options of `cli.add_arguments`.
        prepare: `predict_onnx.prepare`.

    Raises:
        UserError: an architecture or option that cannot be exported.
    """
    config = model.roi_head.test_cfg if hasattr(model, "roi_head") else model.bbox_head.test_cfg
    kind = getattr(config, "nms", {}).get("type", "nms") if hasattr(model, "roi_head") else "nms"
    if kind != "nms":
        raise UserError(f"cannot export {kind}; set model.test_cfg.rcnn.nms.type=nms")
    if hasattr(model, "roi_head"):
        if args.format == "executorch":
            raise UserError(
                "--format executorch cannot hold R-CNN detectors: it has no kernels of non-maximum suppression and "
                "RoIAlign; use another format, or DINO, which needs neither"
            )
        module = RCNN(model)
    elif hasattr(model, "encoder"):
        module = DINO(model)
    else:
        raise UserError(f"cannot export {type(model).__name__}; Mask R-CNN, Cascade Mask R-CNN and DINO can be")
    masks = getattr(module, "has_masks", False)
    names = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    words = {
        "threshold": 0.3,
        "boxes": "x1, y1, x2, y2 in pixels of the input, and score; places without detection have label -1",
        **({"masks": "probabilities over each box", "mask_threshold": config.mask_thr_binary} if masks else {}),
    }
    module.eval()
    compare = functools.partial(detection_error, threshold=config.get("score_thr", 0.0))
    exportable = _exportable(
        model,
        args,
        prepare,
        "detection",
        model=module,
        output_names=names,
        compare=compare,
        matched=matched_detections,
        translations=_translations,
        decompositions=lambda: {torch.ops.internimage.suppress.default: suppress_all},
        words=words,
    )
    if isinstance(module, DINO):
        _check_queries(model, exportable.samples)
    boxes = lambda images, ours: framework_boxes(model, images, ours[0].shape[1])  # noqa: E731
    _compare(exportable, "mmdet", boxes, args.tolerance)
    return exportable


def segmentor_exportable(model: nn.Module, args: argparse.Namespace, prepare: Prepare) -> Exportable:
    """What the exporter needs of a segmentor; as `detector_exportable`."""
    if model.out_channels == 1:
        raise UserError("cannot export a segmentor of one channel; give its head num_classes=2 and out_channels=2")
    if model.test_cfg.mode == "slide":
        print(
            f"The configuration tests in windows of {model.test_cfg.crop_size}; the exported model takes whole images."
        )
    exportable = _exportable(
        model,
        args,
        prepare,
        "segmentation",
        model=Segmentor(model).eval(),
        output_names=("labels", "scores"),
        compare=segmentation_error,
    )
    _compare(exportable, "mmseg", lambda images, _: framework_labels(model, images), args.tolerance)
    return exportable
