"""What differs between detection and segmentation for the scripts that they share."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from ..predictor import Predictor
from ..results import DetectionResult, SegmentationResult
from ..sources import Picture

__all__ = ["DETECTION", "SEGMENTATION", "Task", "find_task"]


class _Detection:
    name = "detection"
    exact_classes = True  # a head must have exactly as many classes as the data
    out_help = "pickle file for the predictions"

    def save_predictions(self, runner: Runner, path: str) -> None:
        """Make a runner's test loop write predictions to a path."""
        from mmdet.evaluation import DumpDetResults

        if not path.endswith((".pkl", ".pickle")):
            raise UserError(f"--out writes a pickle file; give a name that ends in .pkl, not {path}")
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=path))

    def save_pictures(self, config: Config, folder: str) -> None:
        """Make a configuration's test loop draw into a folder."""
        config.default_hooks.visualization.update(draw=True, test_out_dir=str(Path(folder).resolve()))

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

    def save_predictions(self, runner: Runner, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        for metric in runner.test_evaluator.metrics:
            metric.output_dir = path

    def save_pictures(self, config: Config, folder: str) -> None:
        config.default_hooks.visualization.update(draw=True, interval=1)
        # A name of its own: mmengine gives a visualizer of a known name as it is, with the folder of an earlier run.
        config.visualizer.update(save_dir=folder, name=f"visualizer for {folder}")

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


def find_task(config: Config) -> Task:
    """The task of a configuration. Raises `UserError` if it is not one of mmdet or mmseg."""
    scope = config.get("default_scope")
    if scope not in ("mmdet", "mmseg"):
        raise UserError(f"the configuration has default_scope={scope!r}; expected 'mmdet' or 'mmseg'")
    return DETECTION if scope == "mmdet" else SEGMENTATION
