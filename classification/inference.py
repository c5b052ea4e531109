"""A trained classifier and its images, for `internimage.load` and the scripts of classification."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from internimage import create_model
from internimage.checkpoint import load_exact, naming, read_state_dict
from internimage.errors import UserError
from internimage.imagenet import class_names as imagenet_names
from internimage.images import read_image
from internimage.meta_former import logits_of_images
from internimage.model_source import ModelSource, find_model
from internimage.options import add_settings
from internimage.predictor import Predictor, choose_device
from internimage.results import ClassificationResult
from internimage.sources import Picture
from internimage.zoo import local_checkpoint

from .config import DEFAULTS, channel_statistics, get_config, parse_args
from .data.files import EXTENSIONS, ImageFiles, class_folders
from .data.transforms import build_transform
from .models import build_model

__all__ = [
    "ClassificationPredictor",
    "Classifier",
    "add_model_arguments",
    "build_classifier",
    "list_images",
    "load_classifier",
    "read_image",
]


class Classifier(NamedTuple):
    """A model in evaluation mode with its transform and class names."""

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]  # RGB image to a normalised (3, H, W)
    class_names: list[str]
    config: CfgNode
    device: torch.device

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of normalised images `(N, 3, H, W)`, on the CPU; unknown metadata counts as zeros."""
        return logits_of_images(self.model, images.to(self.device)).float().cpu()


class ClassificationPredictor(Predictor):
    """A classifier behind the interface of all tasks."""

    batch_size = 8

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier.model, classifier.class_names)
        self.classifier = classifier

    def to_rgb(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in channel_statistics(self.classifier.config))
        return (image * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)

    def _predict(self, pictures: list[Picture], threshold: float, top: int) -> list[ClassificationResult]:
        images = torch.stack([self.classifier.transform(picture.image) for picture in pictures])
        probabilities = self.classifier.logits(images).softmax(1)
        scores, labels = (part.numpy() for part in probabilities.topk(min(top, probabilities.shape[1])))
        return [
            ClassificationResult(
                *(np.asarray(picture.image), picture.source),
                *(row, score, [self.class_names[label] for label in row]),
                frame=picture.frame,
            )
            for picture, row, score in zip(pictures, labels, scores)
        ]


def add_model_arguments(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """Add the options that select a model: --checkpoint, or --model, and --config for checkpoints without it."""
    which = parser.add_mutually_exclusive_group()
    help = "YAML file of the model, for a --checkpoint that does not carry it"
    which.add_argument("--config", "--cfg", dest="cfg", metavar="FILE", help=help)
    which.add_argument("--model", metavar="NAME", help="released model, such as internimage_t_1k_224")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: a path, a URL, a released name or the folder of a training; defaults to those of --model",
    )
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoint")
    add_settings(parser)
    parser.add_argument("--class-names", metavar="FILE", help="text file with one class name per line")
    if device:
        parser.add_argument("--device", help="cpu, cuda, ...; defaults to the GPU if there is one")


def load_classifier(args: argparse.Namespace, *, weights: bool = True) -> Classifier:
    """Build the model of the options of `add_model_arguments` and load its weights, strictly.

    Args:
        args: with `cfg` or `model`, and `checkpoint`, `ema`, `opts`, `class_names`; `device` if there is one.
        weights: False to build the model on the meta device, without weights.

    Raises:
        UserError: options, names or files that do not exist.
        CheckpointError: weights that cannot be read or do not fit.
    """
    if args.cfg and weights and not args.checkpoint:
        raise UserError("--config needs --checkpoint, the file of the trained weights")
    if not (args.cfg or args.model or args.checkpoint):
        raise UserError("give --checkpoint FILE, or --model NAME")
    if args.model:
        path = local_checkpoint(args.checkpoint) if weights and args.checkpoint else None
        source = ModelSource(args.model, True, None, path)
    elif args.checkpoint:
        source = find_model(args.checkpoint, args.cfg)
    else:
        source = ModelSource(Path(args.cfg).stem, True, Path(args.cfg), None)
    device = choose_device(getattr(args, "device", None)) if weights else torch.device("meta")
    return build_classifier(source, device, ema=args.ema, opts=args.opts, class_names=args.class_names)


def build_classifier(
    source: ModelSource,
    device: torch.device,
    *,
    ema: bool = False,
    opts: Sequence[str] = (),
    class_names: str | None = None,
) -> Classifier:
    """Build the classifier of a source, with the options of `load_classifier`; without weights on the meta device."""
    weights = device.type != "meta"
    if not source.classifier:
        raise UserError(f"{source.name} is not a classifier; use the scripts of detection or segmentation")
    state = read_state_dict(source.checkpoint, ema=ema) if weights and source.checkpoint else None
    with torch.device("cpu" if weights else "meta"):
        if source.config is None:
            model = create_model(source.name, pretrained=weights and state is None)
            config = CfgNode(DEFAULTS)
            config.DATA.IMG_SIZE = int(re.search(r"\d*$", source.name)[0] or 224)  # released names end with it
        else:
            saved = not isinstance(source.config, Path)
            which = ["--eval", "--resume", str(source.checkpoint)] if saved else ["--cfg", str(source.config)]
            config = get_config(parse_args([*which, *(["--opts", *opts] if opts else [])]))
            # The checkpoint determines the number of classes: the data set is not read here.
            head = (state or {}).get("head.weight", torch.empty(0))
            model = build_model(config, head.shape[0] if head.ndim else None)
    if state is not None:
        with naming(source.checkpoint):
            load_exact(model, state)
    names = _class_names(config, model.num_classes, class_names, source.class_names)
    return Classifier(model.eval().to(device), build_transform(config, train=False), names, config, device)


def _class_names(config: CfgNode, count: int, file: str | None, saved: list[str] | None) -> list[str]:
    """Names of `count` classes: from `file`, ImageNet's, from the checkpoint, or from the folders of the data set."""
    if file:
        try:
            names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}; --class-names expects one name per line") from None
        if len(names) != count:
            raise UserError(f"{file} has {len(names)} class names, but the model has {count} classes")
        return names
    if config.DATA.DATASET != "folder" and (names := imagenet_names(count)):
        return names
    if saved and len(saved) == count:
        return saved
    train = Path(config.DATA.DATA_PATH) / "train"
    if config.DATA.DATASET == "folder" and train.is_dir() and len(names := class_folders(train)) == count:
        return names
    return [f"class {index}" for index in range(count)]


def list_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, sorted by path, each once. Raises `UserError` if there are none."""
    paths = sorted(path for path in map(Path, ImageFiles(folder).paths) if path.is_file())
    if not paths:
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}); check the path")
    return paths
