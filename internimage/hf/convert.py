"""Convert a classifier's checkpoint to a folder for transformers, and back; a command and two functions."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from PIL import Image

from classification.config import channel_statistics, input_size
from classification.configs.defaults import DEFAULTS
from classification.inference import build_classifier
from classification.models.intern_image import model_arguments

from ..checkpoint import save_atomic
from ..errors import ArgumentParser, CheckpointError, UserError, exit_on_user_error
from ..files import check_writable
from ..flash import FlashInternImage
from ..imagenet import class_names
from ..meta_former import InternImageMetaFormer
from ..model_source import find_model
from ..variants import VARIANTS
from .configuration import InternImageConfig
from .image_processor import InternImageImageProcessor
from .modeling import InternImageForImageClassification

__all__ = ["to_checkpoint", "to_folder"]


def to_folder(
    source: str | os.PathLike, folder: str | os.PathLike, *, config: str | os.PathLike | None = None
) -> InternImageForImageClassification:
    """Write configuration, weights, image processor and model card to `folder`, and return the model.

    `source` and `config` are those of `internimage.load`: a released name, a checkpoint, a training's folder.
    Raises `UserError` for anything but a classifier of square RGB images alone, and for files that do not fit.
    """
    found = find_model(source, config)
    classifier = build_classifier(found, torch.device("cpu"))
    model, given = classifier.model, classifier.config
    (height, width), (mean, std) = input_size(given), channel_statistics(given)
    if isinstance(model, InternImageMetaFormer) or len(mean) != 3 or height != width or not given.TEST.CROP:
        raise UserError(f"{found.name} takes other input than RGB images, cropped to squares; it cannot be converted")
    arguments = dict(VARIANTS[found.name]) if found.config is None else model_arguments(given)[1]
    if arguments.get("level2_post_norm_block_ids") is not None:
        arguments["level2_post_norm_block_ids"] = list(arguments["level2_post_norm_block_ids"])
    core_op = "DCNv4" if isinstance(model, FlashInternImage) else "DCNv3"
    names = dict(enumerate(classifier.class_names))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    own = InternImageConfig(**{"core_op": core_op, **arguments}, **labels, name_or_path=found.name)
    with torch.device("meta"):
        wrapper = InternImageForImageClassification(own)
    wrapper.model = model
    check_writable(Path(folder, "config.json"))
    wrapper.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": height}, "crop_size": {"height": height, "width": width}}
    resample = Image.Resampling[given.DATA.INTERPOLATION.upper().replace("RANDOM", "BILINEAR")]
    InternImageImageProcessor(**sizes, resample=resample, image_mean=mean, image_std=std).save_pretrained(folder)
    return wrapper


def to_checkpoint(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write the classifier in a folder (or a repository) to a `.pth` file with its configuration and class names.

    `internimage.load` and the scripts of classification read the file. Raises `UserError` if there is no such folder,
    weights are missing, or the configuration of classification does not have its arguments.
    """
    try:
        model, info = InternImageForImageClassification.from_pretrained(folder, output_loading_info=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be converted: {str(error).splitlines()[0]}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{folder} is not a classifier: {len(missing)} entries are missing ({missing[0]}, ...)")
    given = model.config.to_dict()
    if (given["act_layer"], given["norm_layer"], given["cls_scale"]) != ("GELU", "LN", 1.5):
        raise UserError(f"{folder}: classification has only act_layer GELU, norm_layer LN and cls_scale 1.5")
    type_ = "flash_intern_image" if given["core_op"] == "DCNv4" else "intern_image"
    section = {key: given[key.lower()] for key in DEFAULTS["MODEL"][type_.upper()]}
    common = ("num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_path_type")
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    data = {"DATASET": "imagenet" if names == class_names(len(names)) else "folder"}
    if Path(folder, "preprocessor_config.json").is_file():
        data["IMG_SIZE"] = InternImageImageProcessor.from_pretrained(folder).crop_size["height"]
    values = {"TYPE": type_, type_.upper(): section, **{key.upper(): given[key] for key in common}}
    text = yaml.safe_dump({"MODEL": values, "DATA": data})
    check_writable(Path(path))
    save_atomic({"model": model.model.state_dict(), "config": text, "class_names": names}, path)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint to a folder for transformers, or a folder to a checkpoint."""
    parser = ArgumentParser(prog="python -m internimage.hf.convert", description=main.__doc__)
    parser.add_argument("source", help="released name, checkpoint or training; or a folder for transformers")
    parser.add_argument("target", help="folder to write; or, of a folder, the checkpoint, which ends in .pth")
    parser.add_argument("--config", metavar="FILE", help="of a checkpoint that does not carry its configuration")
    args = parser.parse_args(argv)
    if args.target.endswith(".pth"):
        to_checkpoint(args.source, args.target)
    else:
        to_folder(args.source, args.target, config=args.config)
    print(f"wrote {args.target}")


if __name__ == "__main__":
    main()
