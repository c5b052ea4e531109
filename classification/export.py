r"""Export a classifier to another runtime, compare it with PyTorch, and time both.

    python classification/export.py --model internimage_t_1k_224 --output internimage_t.onnx
    python classification/export.py --cfg classification/configs/demo.yaml \
        --checkpoint output/demo/ckpt_epoch_best.pth --images data/fashion_mnist/val --output demo.onnx
    python classification/export.py --cfg F.yaml --random-weights --static --core deform_conv --output test.onnx

Input: normalised images; output: logits. Mean, standard deviation, resizing and class names are in the metadata. Batch
and image size are dynamic unless --static. A file whose results differ from PyTorch's is renamed to *.failed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classification.config import channel_statistics, input_size
from classification.data.files import class_folders
from classification.data.samples import read_folder
from classification.data.transforms import build_transform
from classification.exported_points import LogitsAndPoints
from classification.inference import Classifier, add_model_arguments, list_images, load_classifier, read_image
from classification.models import build_model
from classification.trainer.distributed import World
from classification.trainer.evaluation import evaluate
from internimage import InternImageMetaFormer, create_model
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.export.cli import add_arguments, check_arguments, image_size, run
from internimage.export.formats import Runtime, find_format
from internimage.export.spec import Check, Exportable, Logits, spread_sampling_points

__all__ = ["build_exportable"]

_CALIBRATION_IMAGES = 200
_VALIDATION_BATCH = 50


def _random_weights(args: argparse.Namespace) -> Classifier:
    """The classifier of the options with random weights and sampling points spread like those of a trained one."""
    classifier = load_classifier(args, weights=False)
    torch.manual_seed(0)
    model = create_model(args.model) if args.model else build_model(classifier.config)
    spread_sampling_points(model)
    return classifier._replace(model=model.eval(), device=torch.device("cpu"))


def _metadata(classifier: Classifier, size: tuple[int, int]) -> dict[str, str]:
    config = classifier.config
    mean, std = channel_statistics(config)  # of RGB or grey values from 0 to 1
    return {
        "task": "classification",
        "class_names": json.dumps(classifier.class_names),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "size": json.dumps(size),
        "resize": "shorter side, centre crop" if config.TEST.CROP else "stretch",
        "interpolation": config.DATA.INTERPOLATION,
    }


def _samples(real: Tensor, size: tuple[int, int], args: argparse.Namespace) -> list[Tensor]:
    """Samples of the check from three images of `size`: one and three images, of three sizes if these are dynamic."""
    if args.static:
        return [real.repeat(-(-args.batch // len(real)), 1, 1, 1)[: args.batch]]
    if find_format(args.format).one_size:
        return [real[:1], real]
    height, width = size
    resized = [
        F.interpolate(real, shape, mode="bilinear", antialias=True)
        for shape in ((height * 3 // 4, width), (height, width * 5 // 4 + 1))
    ]
    return [real[:1], real, resized[0][:1], resized[1]]


def _reader(classifier: Classifier, size: tuple[int, int]) -> Callable[[Path], Tensor]:
    """A function that reads an image file as a normalised `(1, C, H, W)` of `size`, with the evaluation transform."""
    config = classifier.config.clone()
    config.defrost()
    config.DATA.IMG_SIZE = list(size)
    transform = build_transform(config, train=False)
    return lambda path: transform(read_image(path))[None]


def _labelled(folder: Path, classifier: Classifier, size: tuple[int, int], batch: int) -> Iterator:
    """Batches of the images in `folder/<class>/` with their labels: the indices of the sorted class folders.

    Raises:
        UserError: the folder and the model have different numbers of classes.
    """
    names, count = class_folders(folder) if folder.is_dir() else [], len(classifier.class_names)
    if len(names) != count:
        raise UserError(f"--validation {folder} has {len(names)} class folders, but the model has {count} classes")
    samples = read_folder(folder, {name: index for index, name in enumerate(names)})
    read = _reader(classifier, size)
    for start in range(0, len(samples), batch):
        chosen = range(start, min(start + batch, len(samples)))
        yield torch.cat([read(Path(samples.name(index))) for index in chosen]), torch.tensor(samples.labels[chosen])


class _Exported(nn.Module):
    """An exported file as a model for `evaluate`; pads the last batch, because the batch may be static."""

    def __init__(self, runtime: Runtime, batch: int) -> None:
        super().__init__()
        self.runtime, self.batch = runtime, batch

    def forward(self, images: Tensor) -> Tensor:
        filler = images[-1:].expand(self.batch - len(images), -1, -1, -1)
        return torch.from_numpy(self.runtime(torch.cat([images, filler]).numpy())[0])[: len(images)]


def _print_accuracy(
    classifier: Classifier, exportable: Exportable, runtimes: dict[str, Runtime], args: argparse.Namespace
) -> None:
    """Print the accuracy of PyTorch and of the files on the images of --validation as a Markdown table."""
    batch = args.batch if args.static else _VALIDATION_BATCH
    runtimes = {"PyTorch": lambda images: [exportable.reference(torch.from_numpy(images))[0].numpy()], **runtimes}
    print("\n| model | top-1 | top-5 | images |\n|---|--:|--:|--:|")
    for name, runtime in runtimes.items():
        batches = _labelled(args.validation, classifier, tuple(exportable.images.shape[2:]), batch)
        figures = evaluate(_Exported(runtime, batch), batches, World())
        print(f"| {name} | {figures['top1']:.2f}% | {figures['top5']:.2f}% | {figures['images']:.0f} |")


def _images(args: argparse.Namespace, classifier: Classifier, size: tuple[int, int]) -> tuple[list[Tensor], str]:
    """Normalised images `(1, C, H, W)` and their kind: "real" ones from --images, else "noise"."""
    if not args.images:
        generator = torch.Generator().manual_seed(0)
        channels = classifier.config.MODEL.IN_CHANS
        return [torch.randn(1, channels, *size, generator=generator) for _ in range(3)], "noise"
    paths = list_images(args.images) if args.images.is_dir() else [args.images]
    count = _CALIBRATION_IMAGES if args.int8 else 3
    paths = paths[:: max(1, len(paths) // count)][:count]
    images = list(map(_reader(classifier, size), paths))
    while len(images) < 3:
        images.append(images[-1].flip(3))
    return images, "real"


def build_exportable(classifier: Classifier, args: argparse.Namespace) -> tuple[Exportable, Check, list[Tensor]]:
    """The model to export, how to check the file, and images for --int8.

    Raises:
        UserError: invalid sizes or images.
    """
    size = image_size(args, input_size(classifier.config))
    images, source = _images(args, classifier, size)
    samples = _samples(torch.cat(images[:3]), size, args)
    model, metadata, names = Logits(classifier.model), _metadata(classifier, size), ("logits",)
    if args.sampling_points:
        model = LogitsAndPoints(classifier.model)
        metadata, names = metadata | model.metadata, model.output_names
    exportable = Exportable(model.eval(), samples[0], names, metadata, dynamic=not args.static)
    return exportable, Check(samples, source), images


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, device=False)
    parser.add_argument("--random-weights", action="store_true", help="no checkpoint, for tests and timing")
    parser.add_argument("--validation", metavar="FOLDER", type=Path, help="folder of class folders: print the accuracy")
    help = "further outputs: where the last block of each level samples, for the page in docs/web"
    parser.add_argument("--sampling-points", action="store_true", help=help)
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    if args.random_weights and args.checkpoint:
        raise UserError("--random-weights and --checkpoint exclude each other; pass one of them")
    if args.cfg and not (args.random_weights or args.checkpoint):
        raise UserError("--config needs --checkpoint, the file of the trained weights, or --random-weights")
    classifier = _random_weights(args) if args.random_weights else load_classifier(args)
    classifier.model.cpu()
    if isinstance(classifier.model, InternImageMetaFormer):
        print("The exported model has no inputs for place and date: they are unknown (zeros).")
    exportable, check, images = build_exportable(classifier, args)
    runtimes = run(exportable, check, args, images)
    if args.validation:
        _print_accuracy(classifier, exportable, runtimes, args)


if __name__ == "__main__":
    main()
