"""What differs between detection and segmentation for the scripts that they share."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError

__all__ = ["DETECTION", "SEGMENTATION", "Task"]


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

    def summary(self, sample: object, score_thr: float) -> str:
        """What `infer` found, in words."""
        return f"{int((sample.pred_instances.scores >= score_thr).sum())} objects with a score of at least {score_thr}"


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

    def summary(self, sample: object, score_thr: float) -> str:
        return f"{len(sample.pred_sem_seg.data.unique())} classes"


Task = _Detection | _Segmentation
DETECTION, SEGMENTATION = _Detection(), _Segmentation()
