"""A trained classifier and its images, for the scripts predict, extract_feature, pictures and export."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from yacs.config import CfgNode

from internimage import create_model
from internimage.checkpoint import load_exact, naming, read_state_dict
from internimage.errors import UserError
from internimage.images import decode_rgb
from internimage.meta_former import logits_of_images
from internimage.zoo import local_checkpoint

from .config import DEFAULTS, channel_statistics, get_config, parse_args
from .data.files import EXTENSIONS, ImageFiles, class_folders
from .data.transforms import build_transform
from .models import build_model
from .trainer.distributed import start

__all__ = ["Classifier", "add_model_arguments", "load_classifier", "read_image", "list_images"]


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

    def to_rgb(self, image: Tensor) -> Tensor:
        """The image that the model sees, normalised `(C, H, W)`, as `(H, W, 3)` with values 0 to 1."""
        mean, std = (torch.tensor(values)[:, None, None] for values in channel_statistics(self.config))
        return (image * std + mean).clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a model: --cfg and --checkpoint, or --model."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--cfg", metavar="FILE", help="YAML file of the model; needs --checkpoint")
    which.add_argument("--model", metavar="NAME", help="released model, such as internimage_t_1k_224")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights: a path, a URL or a released name; defaults to those of --model",
    )
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoint")
    parser.add_argument(
        "--opts", nargs="+", action="extend", metavar="KEY VALUE", help="change configuration keys of --cfg"
    )
    parser.add_argument("--class-names", metavar="FILE", help="text file with one class name per line")


def load_classifier(args: argparse.Namespace, *, weights: bool = True) -> Classifier:
    """Build the model of the options of `add_model_arguments` and load its weights, strictly.

    Args:
        args: with `cfg` or `model`, and `checkpoint`, `ema`, `opts`, `class_names`.
        weights: False to build the model on the meta device, without weights.

    Raises:
        UserError: options, names or files that do not exist.
        CheckpointError: weights that cannot be read or do not fit.
    """
    if args.cfg and weights and not args.checkpoint:
        raise UserError("--cfg needs --checkpoint, the file of the trained weights")
    device = start("none").device if weights else torch.device("meta")
    state = read_state_dict(local_checkpoint(args.checkpoint), ema=args.ema) if weights and args.checkpoint else None
    with torch.device("cpu" if weights else "meta"):
        if args.model:
            model = create_model(args.model, pretrained=weights and state is None)
            config = CfgNode(DEFAULTS)
            config.DATA.IMG_SIZE = int(re.search(r"\d*$", args.model)[0] or 224)  # released names end with it
        else:
            config = get_config(parse_args(["--cfg", args.cfg, *(["--opts", *args.opts] if args.opts else [])]))
            # The checkpoint determines the number of classes: the data set is not read here.
            head = (state or {}).get("head.weight", torch.empty(0))
            model = build_model(config, head.shape[0] if head.ndim else None)
    if state is not None:
        with naming(args.checkpoint):
            load_exact(model, state)
    names = _class_names(config, model.num_classes, args.class_names)
    return Classifier(model.eval().to(device), build_transform(config, train=False), names, config, device)


def _class_names(config: CfgNode, count: int, file: str | None) -> list[str]:
    """Names of `count` classes: from `file`, from the folders of the data set, or ImageNet's."""
    if file:
        try:
            names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}; --class-names expects one name per line") from None
        if len(names) != count:
            raise UserError(f"{file} has {len(names)} class names, but the model has {count} classes")
        return names
    train = Path(config.DATA.DATA_PATH) / "train"
    if config.DATA.DATASET == "folder" and train.is_dir() and len(names := class_folders(train)) == count:
        return names
    imagenet = {1000: "imagenet1k", 21841: "imagenet22k"}.get(count)
    if config.DATA.DATASET != "folder" and imagenet:
        info = ImageNetInfo(imagenet)
        return [info.index_to_description(index) for index in range(count)]
    return [f"class {index}" for index in range(count)]


def read_image(path: str | Path) -> Image.Image:
    """Read an image by `decode_rgb`. Raises `UserError` if it is missing, damaged or not supported."""
    try:
        return decode_rgb(path)
    except FileNotFoundError:
        raise UserError(f"no image at {path}; check the path") from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"{path} cannot be read as an image ({error}); choose another image") from None


def list_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, sorted by path, each once. Raises `UserError` if there are none."""
    paths = sorted(path for path in map(Path, ImageFiles(folder).paths) if path.is_file())
    if not paths:
        raise UserError(f"{folder} has no images ({', '.join(EXTENSIONS)}); check the path")
    return paths
