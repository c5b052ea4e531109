"""What differs between detection and segmentation for the scripts that they share."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from ..predictor import Predictor
from ..results import DetectionResult, SegmentationResult
from ..sources import Picture

__all__ = ["DETECTION", "SEGMENTATION", "FuseHook", "PicturesHook", "ScheduleHook", "Task", "find_task", "is_mmdet3d"]


_TTA_SCALES = (0.8, 1.0, 1.2)


class PicturesHook(Hook):
    """Write a picture of every tested image to a folder, under the image's own name."""

    def __init__(self, folder: str, **options: object) -> None:
        self.folder, self.options = Path(folder), options

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: object, outputs: Sequence) -> None:
        """Draw the annotations and the predictions of a batch."""
        for sample in outputs:
            image, path = mmcv.imread(sample.img_path, channel_order="rgb"), Path(sample.img_path)
            if is_mmdet3d(runner.cfg):  # which draws on the image that the camera's scaled intrinsics belong to
                image = {"img": mmcv.imresize(image, sample.img_shape[:2][::-1])}
            options = {"out_file": str(self.folder / path.name), **self.options}
            runner.visualizer.add_datasample(path.stem, image, sample, **options)


class FuseHook(Hook):
    """Fold BatchNorm into the convolutions before it, once the checkpoint is loaded."""

    def before_test(self, runner: Runner) -> None:
        fuse_conv_bn(runner.model)


class ScheduleHook(Hook):
    """Log the learning rate that the optimizer gets and the number of updates, unless the training is finished."""

    def before_train(self, runner: Runner) -> None:
        """Log it, and a warning if the updates are few."""
        loop, config = runner.train_loop, runner.cfg
        steps = config.optim_wrapper.get("accumulative_counts", 1)
        images, total = config.train_dataloader.get("batch_size", 1) * runner.world_size, loop.max_iters // steps
        rate = max(group.get("initial_lr", group["lr"]) for group in runner.optim_wrapper.param_groups)
        if loop.iter < loop.max_iters:
            text = f"learning rate {rate:.3g} (optim_wrapper.optimizer.lr {config.optim_wrapper.optimizer.lr:.3g}), "
            text += f"{images * steps} images per update; {total} updates"
            runner.logger.info(text + ", too few to learn much: train longer" * (total < 200))


class _Detection:
    name = "detection"
    exact_classes = True  # a head must have exactly as many classes as the data
    out_help = "pickle file for the predictions; with --format-only the prefix of JSON files"
    format_key = "outfile_prefix"  # of a metric that only writes

    def save_predictions(self, runner: Runner, path: str) -> None:
        """Make a runner's test loop write predictions to a path."""
        from mmdet.evaluation import DumpDetResults

        if not path.endswith((".pkl", ".pickle")):
            raise UserError(f"--predictions writes a pickle file; give a name that ends in .pkl, not {path}")
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=path))

    def add_tta(self, config: Config) -> None:
        """Add test-time augmentation to a configuration without: three scales of its own, each with its mirror image.

        Nothing is added if the test pipeline does not resize to a pair of lengths.
        """
        pipeline = config.test_dataloader.dataset.pipeline
        at = next((i for i, step in enumerate(pipeline) if step.type == "Resize"), len(pipeline) - 1)
        if "tta_pipeline" in config or not isinstance(pipeline[at].get("scale"), tuple):
            return
        sizes = [{**pipeline[at], "scale": tuple(round(k * side) for side in pipeline[at].scale)} for k in _TTA_SCALES]
        flips = [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0}]
        # PackDetInputs has all keys by default; the test pipelines leave out those of mirror images.
        rest = [[{key: value for key, value in step.items() if key != "meta_keys"}] for step in pipeline[at + 1 :]]
        config.tta_pipeline = [*pipeline[:at], {"type": "TestTimeAug", "transforms": [sizes, flips, *rest]}]
        merging = {"nms": {"type": "nms", "iou_threshold": 0.6}, "max_per_img": 100}
        config.tta_model = {"type": "DetTTAModel", "tta_cfg": merging}

    def infer(self, model: nn.Module, image: np.ndarray) -> object:
        """Run a model of the framework's inference functions on an image `(H, W, 3)`, BGR uint8."""
        from mmdet.apis import inference_detector

        return inference_detector(model, image)

    def result(
        self, predictor: Predictor, sample: object, image: np.ndarray, picture: Picture, threshold: float
    ) -> DetectionResult:
        """The result of `infer` on an image `(H, W, 3)`, RGB uint8: the objects of at least the score `threshold`."""
        found = sample.pred_instances
        found = found[found.scores >= threshold].cpu().numpy()
        names = [predictor.class_names[label] for label in found.labels]
        parts = found.bboxes, found.scores, found.labels, names, found.get("masks"), predictor.palette
        return DetectionResult(image, picture.source, *parts, frame=picture.frame)


class _Segmentation:
    name = "segmentation"
    exact_classes = False  # released street-scene heads have more classes than the data
    out_help = "folder for the predicted label maps"
    format_key = "output_dir"

    def save_predictions(self, runner: Runner, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        for metric in runner.test_evaluator.metrics:
            metric.output_dir = path

    def infer(self, model: nn.Module, image: np.ndarray) -> object:
        from mmseg.apis import inference_model

        return inference_model(model, image)

    def result(
        self, predictor: Predictor, sample: object, image: np.ndarray, picture: Picture, threshold: float
    ) -> SegmentationResult:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        parts = labels, predictor.class_names, predictor.palette
        return SegmentationResult(image, picture.source, *parts, frame=picture.frame)


Task = _Detection | _Segmentation
DETECTION, SEGMENTATION = _Detection(), _Segmentation()


def is_mmdet3d(config: Config) -> bool:
    """Whether a configuration is one of mmdet3d: a task of `DETECTION`, for training and testing only."""
    return config.get("default_scope") == "mmdet3d"


def find_task(config: Config) -> Task:
    """The task of a configuration. Raises `UserError` if it is not one of mmdet or mmseg."""
    scope = config.get("default_scope")
    if is_mmdet3d(config):
        raise UserError("a configuration of mmdet3d can be trained and tested here; predict with mmdet3d.apis")
    if scope not in ("mmdet", "mmseg"):
        raise UserError(f"the configuration has default_scope={scope!r}; expected 'mmdet' or 'mmseg'")
    return DETECTION if scope == "mmdet" else SEGMENTATION
