"""The commands of `internimage` for models of all tasks, each thin over the functions of the tasks' scripts."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ops_dcnv3.__main__ import report

from .errors import ArgumentParser, UserError
from .export.cli import image_size
from .flops import count_parameters, describe_size
from .flops import flops as count
from .loading import load
from .model_source import ModelSource, find_config, find_model
from .predictions import PredictionFiles

__all__ = ["doctor", "evaluate", "export", "flops", "predict", "train", "visualize"]


def _parser(command: str, description: str, *, weights: bool = True) -> ArgumentParser:
    """A parser with the options that say which model. `weights`: trained, or else its architecture alone."""
    parser = ArgumentParser(prog=f"internimage {command}", description=description, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="NAME", help="released model; internimage models lists them")
    if weights:
        which.add_argument("--checkpoint", metavar="FILE", help="a path, a URL, or the folder of a training")
    (parser if weights else which).add_argument("--config", "--cfg", metavar="FILE", help="a file, or a name")
    return parser


def _task(source: ModelSource) -> str:
    if source.classifier:
        return "classification"
    from .mm.predictor import model_config
    from .mm.tasks import find_task

    return find_task(model_config(source)).name


def _config(source: ModelSource, *option: str) -> list[str]:
    """The words for a task's script that name the configuration's file; none if the checkpoint carries it."""
    return [*option, str(source.config)] if isinstance(source.config, Path) else []


def predict(argv: Sequence[str]) -> None:
    """`internimage predict IMAGES --model NAME`: write pictures, predictions.json and .csv."""
    parser = _parser("predict", "Classify, detect or segment; write pictures, predictions.json and predictions.csv.")
    parser.add_argument("images", nargs="+", help="images, folders, patterns, videos, URLs")
    parser.add_argument("--output", type=Path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ...; defaults to the GPU if there is one")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of an object; default: %(default)s")
    parser.add_argument("--top", type=int, default=5, help="number of classes of a classifier; default: %(default)s")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="look at large images in tiles of this side")
    parser.add_argument("--overlap", type=float, default=0.2, help="share of neighbouring tiles; default: %(default)s")
    args = parser.parse_args(argv)
    failures: list[UserError] = []

    def report_failure(error: UserError) -> None:
        failures.append(error)
        print(f"error: {error}", file=sys.stderr)

    model = load(args.checkpoint or args.model, config=args.config, device=args.device)
    with PredictionFiles(args.output) as files:
        options = {key: getattr(args, key) for key in ("threshold", "top", "tile", "overlap")}
        for result in model.stream(args.images, **options, on_error=report_failure):
            path = files.add(result)
            if not result.frame:  # images, and the first frame of a video
                print(f"{result.source}: {result.summary()}; {path}", flush=True)
    print(f"{files.count} results in {args.output / 'predictions.json'} and predictions.csv")
    if failures:
        sys.exit(f"{len(failures)} of the given files could not be read")


def train(argv: Sequence[str]) -> None:
    """`internimage train --model NAME`: the task's `train.py`."""
    parser = _parser("train", "Train a model. Other options are those of the task's train.py.", weights=False)
    args, rest = parser.parse_known_args(argv)
    source = find_config(args.config or args.model)
    if source.classifier:
        from classification.train import main

        if source.config is None:
            raise UserError(f"{source.name} has no recipe here; give --config FILE, and --pretrained {source.name}")
        main(["--cfg", str(source.config), *rest])
    else:
        from .mm import runner

        runner.train(getattr(runner, _task(source).upper()), [str(source.config), *rest])


def evaluate(argv: Sequence[str]) -> None:
    """`internimage evaluate --checkpoint FILE`: `train.py --eval` or `test.py`."""
    parser = _parser("evaluate", "Evaluate a model. Other options are those of train.py --eval or test.py of the task.")
    args, rest = parser.parse_known_args(argv)
    source = find_model(args.checkpoint or args.model, args.config)
    checkpoint = str(source.checkpoint)
    if source.classifier:
        from classification.train import main

        main(["--eval", "--resume", checkpoint, *_config(source, "--cfg"), *rest])
    else:
        from .mm import runner

        runner.test(getattr(runner, _task(source).upper()), [*_config(source), checkpoint, *rest])


def export(argv: Sequence[str]) -> None:
    """`internimage export --checkpoint FILE --output model.onnx`: the task's `export.py`."""
    parser = _parser("export", "Export a model. Other options are those of the task's export.py.")
    args, rest = parser.parse_known_args(argv)
    source = find_model(args.checkpoint or args.model, args.config)
    task = _task(source)
    rest += ["--checkpoint", str(source.checkpoint)]
    if task == "classification":
        from classification.export import main

        main([*(["--model", source.name] if source.config is None else _config(source, "--cfg")), *rest])
    else:
        from detection.export import main as export_detector
        from segmentation.export import main as export_segmentor

        (export_detector if task == "detection" else export_segmentor)([*_config(source), *rest])


def flops(argv: Sequence[str]) -> None:
    """`internimage flops --model NAME`: parameters and FLOPs."""
    parser = _parser("flops", "Print parameters and FLOPs by the convention of the published tables.", weights=False)
    help = "one number, or height and width; defaults to the published tables' size"
    parser.add_argument("--size", nargs="+", type=int, metavar="PIXELS", help=help)
    args = parser.parse_args(argv)
    source = find_config(args.config or args.model)
    task = _task(source)
    if task == "classification":
        from classification.config import input_size
        from classification.inference import build_classifier

        classifier = build_classifier(source, torch.device("meta"))
        size = image_size(args, input_size(classifier.config))
        parameters, operations = count_parameters(classifier.model), count(classifier.model, size)
    else:
        from .mm.flops import measure
        from .mm.predictor import model_config

        size = image_size(args, {"detection": (800, 1280), "segmentation": (512, 2048)}[task])
        parameters, operations = measure(model_config(source), size)
    print(f"{source.name}: {describe_size(parameters, operations)} at {size[0]} x {size[1]}")


def visualize(argv: Sequence[str]) -> None:
    """`internimage visualize IMAGE --model NAME`: write pictures of what the model sees."""
    from .figures import save_figure  # needs matplotlib
    from .visualization import visualize as draw
    from .visualization.sampling_points import query_pixel

    parser = _parser("visualize", "Draw sampling points, mask weights, features, class activation, receptive field.")
    parser.add_argument("images", nargs="+", help="images, folders, patterns, videos, URLs")
    parser.add_argument("--output", type=Path, default=Path("pictures"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ...; defaults to the GPU if there is one")
    help = "pixels of the model's input whose sampling points are drawn"
    parser.add_argument("--query", metavar="X,Y", type=query_pixel, nargs="+", default=(), help=help)
    args = parser.parse_args(argv)
    model = load(args.checkpoint or args.model, config=args.config, device=args.device)
    for name, picture in draw(model, args.images, queries=args.query).items():
        save_figure(picture, args.output / f"{name}.png")


def doctor(argv: Sequence[str]) -> None:
    """`internimage doctor`: which implementations of the operator run here."""
    ArgumentParser(prog="internimage doctor", description=doctor.__doc__).parse_args(argv)
    print(report())
