"""`internimage.load`: a trained model of any task, ready to predict, from its name or its checkpoint."""

import os

import torch

from .errors import UserError
from .model_source import ModelSource, find_model
from .predictor import Predictor, choose_device

__all__ = ["load"]


def load(
    model: str | os.PathLike,
    *,
    config: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
) -> Predictor:
    """Load a trained classifier, detector or segmentor.

        model = internimage.load("mask_rcnn_internimage_t_fpn_1x_coco")
        for result in model.predict("street.jpg"):
            print(result.names, result.scores, result.boxes)
            result.plot().save("found.jpg")

    Args:
        model: a released name (`internimage models` lists them), the path or URL of a checkpoint, or the folder of a
            training.
        config: path or name of the configuration; needed for checkpoints that do not carry one, and preferred to it.
        device: defaults to the GPU if there is one.

    Raises:
        UserError: no such model, file, configuration or device; missing packages.
        CheckpointError: a file that cannot be read, does not fit, or does not say how to build its model.
    """
    place = choose_device(device)
    return build(find_model(model, config), place)


def build(source: ModelSource, device: torch.device) -> Predictor:
    """The model of a source. Raises `UserError` as `load`."""
    if source.checkpoint is None:
        raise UserError(f"{source.name} has no released weights; give a checkpoint, with config={source.name!r}")
    try:
        if source.classifier:
            from classification.inference import ClassificationPredictor, build_classifier

            return ClassificationPredictor(build_classifier(source, device))
        from .mm.predictor import MMPredictor, load_model, model_config

        return MMPredictor(load_model(model_config(source), source.checkpoint, device))
    except ModuleNotFoundError as error:
        extra = "train" if source.classifier else "mm"
        raise UserError(f"the package {error.name} is missing; run pip install 'internimage[{extra}]'") from error
