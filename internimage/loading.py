"""`internimage.load`: a trained model of any task, ready to predict, from its name or its checkpoint."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .errors import UserError
from .model_source import find_model, is_transformers_folder
from .predictor import Predictor, choose_device

__all__ = ["load"]


def load(
    model: str | os.PathLike, *, config: str | os.PathLike | None = None, device: str | torch.device | None = None
) -> Predictor:
    """Load a trained classifier, detector or segmentor: `internimage.load(NAME).predict("street.jpg")[0].plot()`.

    Args:
        model: a released name (`internimage models` lists them), the path or URL of a checkpoint, the folder of a
            training, or a classifier's folder in the layout of transformers.
        config: path or name of the configuration; needed for checkpoints that do not carry one, and preferred to it.
        device: defaults to the GPU if there is one.

    Raises:
        UserError: no such model, file, configuration or device; missing packages.
        CheckpointError: a file that cannot be read, does not fit, or does not say how to build its model.
    """
    place, extra = choose_device(device), "hf"
    try:
        if is_transformers_folder(given := Path(model).expanduser()):
            from .hf.convert import to_checkpoint

            with TemporaryDirectory() as folder:
                to_checkpoint(given, path := Path(folder, "converted.pth"))
                return load(path, device=place)
        source = find_model(model, config)
        extra = "train" if source.classifier else "mm"
        if source.classifier:
            from classification.inference import ClassificationPredictor, build_classifier

            return ClassificationPredictor(build_classifier(source, place))
        from .mm.predictor import MMPredictor, load_model, model_config
    except ModuleNotFoundError as error:
        if error.name in ("classification", "detection", "segmentation"):
            raise UserError(f"the installation lacks the package {error.name}; install this project again") from error
        raise UserError(f"the package {error.name} is missing; run pip install 'internimage[{extra}]'") from error
    return MMPredictor(load_model(model_config(source), source.checkpoint, place))
