"""Detectors and segmentors ready to predict, and the configuration that belongs to a checkpoint."""

import argparse
import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from torch import Tensor, nn

from ..checkpoint import extract_state_dict, load_exact, load_file
from ..errors import CheckpointError, UserError
from ..model_source import ModelSource, checkpoint_file, find_model
from ..predictor import Predictor
from ..results import Result
from ..sources import Picture
from ..zoo import local_checkpoint
from .checks import add_settings, merge_options, read_config
from .plain_config import KEY, from_plain, to_plain
from .tasks import find_task
from .tiles import infer_tiles

__all__ = ["MMPredictor", "add_model_arguments", "load_model", "model_config", "resolve_model"]


def model_config(source: ModelSource, options: Mapping | None = None) -> Config:
    """The configuration of a detector or segmentor, with `options` merged into it.

    Raises:
        UserError: it is a classifier, or its configuration cannot be read.
    """
    if source.classifier:
        raise UserError(f"{source.name} is a classifier; use classification/predict.py, or internimage predict")
    if isinstance(source.config, Path):
        return read_config(str(source.config), options)
    return merge_options(from_plain(source.config, str(source.checkpoint)), options)


def add_model_arguments(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """Add CONFIG, CHECKPOINT (`positional`: as an argument too) and --opts; CONFIG may be left out."""
    parser.add_argument("config", nargs="?", help="configuration file; defaults to the one that the checkpoint carries")
    if positional:
        parser.add_argument("weights", nargs="?", metavar="checkpoint", help="path or URL of the weights")
    parser.add_argument("--config", "--cfg", dest="named_config", metavar="FILE", help="the same as CONFIG")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights: a path, a URL, or the folder of a training")
    add_settings(parser)


def resolve_model(args: argparse.Namespace, *, random_weights: bool = False) -> tuple[Config, str | None]:
    """The configuration and the checkpoint of the options of `add_model_arguments`.

    Raises:
        UserError: nothing says which checkpoint, or the checkpoint does not say its configuration.
    """
    config, checkpoint = args.config, args.checkpoint or getattr(args, "weights", None)
    if args.named_config:
        config, checkpoint = args.named_config, checkpoint or config
    if checkpoint is None and config and not config.endswith(".py"):
        config, checkpoint = None, config
    if checkpoint is None and not (random_weights and config):
        raise UserError("give the checkpoint: [CONFIG] CHECKPOINT, or --checkpoint FILE")
    if config is not None:
        args.config = config
        checkpoint = str(checkpoint_file(checkpoint)) if checkpoint and Path(checkpoint).is_dir() else checkpoint
        given = read_config(config, args.cfg_options)
        if checkpoint is not None:
            _note_other_settings(given, config, checkpoint)
        return given, checkpoint
    source = find_model(checkpoint)
    args.config = f"{source.name}.py"
    loaded = model_config(source, args.cfg_options)
    loaded.pop("work_dir", None)  # the training's
    return loaded, str(source.checkpoint)


def _note_other_settings(config: Config, name: str, checkpoint: str) -> None:
    """Print a line if the checkpoint was trained with another model or tested with another pipeline."""
    try:
        trees = load_file(local_checkpoint(checkpoint))["meta"][KEY], to_plain(config)
        saved, given = ((tree["model"], tree["test_dataloader"]["dataset"]["pipeline"]) for tree in trees)
        differ = saved != given
    except (KeyError, TypeError, RecursionError):  # a file of another kind, or a wrapped data set
        return
    if differ:
        print(
            f"note: {checkpoint} was trained with another model or test pipeline than those of {name}, which are used; "
            "leave out CONFIG to use the checkpoint's"
        )


def _classes_and_colors(config: Config, content: object) -> dict:
    """Class names and palette: those in the checkpoint, else those of the configuration's test data."""
    saved = content.get("meta") or {} if isinstance(content, dict) else {}
    meta = dict(saved.get("dataset_meta") or {})
    if "classes" not in meta:
        meta |= DATASETS.build({**config.test_dataloader.dataset, "lazy_init": True}).metainfo
        meta |= {key.lower(): saved[key] for key in ("CLASSES", "PALETTE") if saved.get(key)}
    meta.setdefault("palette", "random")
    return meta


def load_model(config: Config, checkpoint: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Build a model for mmdet's and mmseg's inference functions, with every weight from the checkpoint.

    Args:
        config: the model's configuration.
        checkpoint: path or URL; any layout.
        device: to run on.

    Raises:
        UserError: no such checkpoint.
        CheckpointError: it does not fit.
    """
    init_default_scope(config.get("default_scope", "mmengine"))
    config.model.backbone.pop("init_cfg", None)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    content = load_file(local_checkpoint(checkpoint))
    try:
        load_exact(model, extract_state_dict(content))
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    model.cfg = config
    # mmseg reads this variable, but settings change the data set's own list.
    config.test_pipeline = copy.deepcopy(config.test_dataloader.dataset.pipeline)
    model.dataset_meta = _classes_and_colors(config, content)
    return model.to(device).eval()


class MMPredictor(Predictor):
    """A detector or segmentor of `load_model` behind the interface of all tasks."""

    def __init__(self, model: nn.Module) -> None:
        names = list(model.dataset_meta.get("classes") or ())
        counts = [getattr(module, "num_classes", 0) for module in model.modules()]
        # Released heads for street scenes have more classes than the data.
        names += [f"class {label}" for label in range(len(names), max(n for n in counts if isinstance(n, int)))]
        super().__init__(model, names)
        self.task = find_task(model.cfg)
        palette = model.dataset_meta["palette"]
        self.palette = [] if palette is None or isinstance(palette, str) else [tuple(color) for color in palette]

    def to_rgb(self, image: Tensor) -> Tensor:
        mean, std = (getattr(self.model.data_preprocessor, name).to(image) for name in ("mean", "std"))
        return ((image * std + mean) / 255).clamp(0, 1).permute(1, 2, 0)

    def _check_tiles(self, tile: int | None, overlap: float) -> None:
        if tile is not None and (tile < 32 or not 0 <= overlap < 1):
            raise UserError(f"expected a tile of at least 32 pixels and 0 <= overlap < 1; got {tile} and {overlap}")

    def _predict(self, pictures: list[Picture], threshold: float, top: int) -> list[Result]:
        def infer(image: np.ndarray) -> object:
            return self.task.infer(self.model, image[..., ::-1])

        results = []
        with DefaultScope.overwrite_default_scope(self.model.cfg.default_scope):  # another model may have changed it
            for picture in pictures:
                image = np.asarray(picture.image)
                sample = infer_tiles(infer, image, *self.tiles, threshold) if self.tiles else infer(image)
                results.append(self.task.result(self, sample, image, picture, threshold))
        return results
