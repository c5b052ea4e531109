"""The commands of `internimage` for models of all tasks, each thin over the functions of the tasks' scripts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ops_dcnv3.__main__ import report

from .errors import UserError
from .flops import count_parameters
from .flops import flops as count
from .loading import build
from .model_source import ModelSource, find_config, find_model
from .predictions import PredictionFiles
from .predictor import choose_device

__all__ = ["doctor", "evaluate", "export", "flops", "predict", "train"]


def _parser(command: str, description: str, *, rest: str = "") -> argparse.ArgumentParser:
    """A parser with the options that say which model. `rest`: the script that reads the other options."""
    more = f" Other options are those of {rest}: internimage {command} --model NAME --help." if rest else ""
    parser = argparse.ArgumentParser(
        prog=f"internimage {command}", description=f"{description}{more}", allow_abbrev=False, add_help=not rest
    )
    parser.add_argument("--model", metavar="NAME", help="released model or configuration; see internimage models")
    parser.add_argument("--config", metavar="FILE", help="configuration of a --checkpoint that does not carry it")
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="FILE", help="weights: a path, a URL, or the folder of a training")


def _known(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of `_parser`, and those for the task's script."""
    args, rest = parser.parse_known_args(argv)
    if not (args.model or args.config or getattr(args, "checkpoint", None)):
        if {"-h", "--help"} & set(rest):
            parser.print_help()
            sys.exit()
        _need_model()
    return args, rest


def _need_model() -> None:
    raise UserError("give --model NAME (internimage models lists the names) or --checkpoint FILE")


def _source(args: argparse.Namespace, *, weights: bool = True) -> ModelSource:
    """The model of the options; with --checkpoint, --model is the name of its configuration."""
    if args.checkpoint:
        return find_model(args.checkpoint, args.config or args.model)
    if args.config or not args.model:
        if weights or not args.config:
            _need_model()
        return find_model(args.config, weights=False)
    return find_model(args.model, weights=weights)


def _task(source: ModelSource) -> str:
    if source.classifier:
        return "classification"
    from .mm.predictor import model_config
    from .mm.tasks import find_task

    return find_task(model_config(source)).name


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def predict(argv: Sequence[str]) -> None:
    """`internimage predict IMAGES --model NAME`: write pictures and predictions.json."""
    parser = _parser("predict", "Classify, detect or segment, and write pictures and predictions.json.")
    parser.add_argument("images", nargs="+", help="images, folders, patterns, videos, URLs")
    _add_checkpoint(parser)
    parser.add_argument("--output", type=Path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda, ...; defaults to the GPU if there is one")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of an object; default: %(default)s")
    parser.add_argument("--top", type=int, default=5, help="number of classes of a classifier; default: %(default)s")
    args = parser.parse_args(argv)
    failures: list[UserError] = []

    def report_failure(error: UserError) -> None:
        failures.append(error)
        print(f"error: {error}", file=sys.stderr)

    device = choose_device(args.device)
    model = build(_source(args), device)
    with PredictionFiles(args.output) as files:
        for result in model.stream(args.images, threshold=args.threshold, top=args.top, on_error=report_failure):
            path = files.add(result)
            if not result.frame:  # images, and the first frame of a video
                print(f"{result.source}: {result.summary()}; {path}", flush=True)
    print(f"{files.count} results in {args.output / 'predictions.json'}")
    if failures:
        sys.exit(f"{len(failures)} images could not be read")


def train(argv: Sequence[str]) -> None:
    """`internimage train --model NAME`: the task's `train.py`."""
    parser = _parser("train", "Train a model.", rest="the task's train.py")
    parser.add_argument("--output", metavar="DIR", help="folder for logs and checkpoints")
    args, rest = _known(parser, argv)
    path = find_config(args.config or args.model)
    source = ModelSource(path.stem, path.suffix in (".yaml", ".yml"), path, None)
    output = _option("--output", args.output)
    if source.classifier:
        from classification.train import main

        main(["--cfg", str(path), *output, *rest])
    else:
        from .mm import runner

        runner.train(getattr(runner, _task(source).upper()), [str(path), *output, *rest])


def evaluate(argv: Sequence[str]) -> None:
    """`internimage evaluate --checkpoint FILE`: `train.py --eval` or `test.py`."""
    parser = _parser("evaluate", "Evaluate a model on its test data.", rest="train.py --eval or test.py of the task")
    _add_checkpoint(parser)
    parser.add_argument("--output", metavar="DIR", help="folder for logs")
    args, rest = _known(parser, argv)
    source = _source(args)
    output, config = _option("--output", args.output), source.config if isinstance(source.config, Path) else None
    if source.classifier:
        from classification.train import main

        if source.config is None:
            config = find_config(source.name)
        main(["--eval", "--resume", str(source.checkpoint), *_option("--cfg", config), *output, *rest])
    else:
        from .mm import runner

        files = ([] if config is None else [str(config)]) + [str(source.checkpoint)]
        runner.test(getattr(runner, _task(source).upper()), [*files, *output, *rest])


def export(argv: Sequence[str]) -> None:
    """`internimage export --checkpoint FILE --output model.onnx`: the task's `export.py`."""
    parser = _parser("export", "Export a model to ONNX and other formats.", rest="the task's export.py")
    _add_checkpoint(parser)
    args, rest = _known(parser, argv)
    source = _source(args, weights="--random-weights" not in rest)
    task = _task(source)
    config = source.config if isinstance(source.config, Path) else None
    checkpoint = _option("--checkpoint", source.checkpoint)
    if task == "classification":
        from classification.export import main

        name = ["--model", source.name] if source.config is None else _option("--cfg", config)
        main([*name, *checkpoint, *rest])
    else:
        from detection.export import main as export_detector
        from segmentation.export import main as export_segmentor

        script = export_detector if task == "detection" else export_segmentor
        script([*([] if config is None else [str(config)]), *checkpoint, *rest])


def flops(argv: Sequence[str]) -> None:
    """`internimage flops --model NAME`: parameters and FLOPs."""
    parser = _parser("flops", "Print parameters and FLOPs by the convention of the published tables.")
    _add_checkpoint(parser)
    parser.add_argument("--size", nargs="+", type=int, metavar="PIXELS", help="one number, or height and width")
    args = parser.parse_args(argv)
    source = _source(args, weights=False)
    task = _task(source)
    size = args.size and (tuple(args.size) * 2)[:2]
    if task == "classification":
        from classification.inference import build_classifier

        classifier = build_classifier(source, torch.device("meta"))
        size = size or (classifier.config.DATA.IMG_SIZE,) * 2
        parameters, operations = count_parameters(classifier.model), count(classifier.model, size)
    else:
        from .mm.flops import measure
        from .mm.predictor import model_config

        size = size or ((800, 1280) if task == "detection" else (512, 2048))
        parameters, operations = measure(model_config(source), size)
    print(f"{source.name}: {parameters / 1e6:.2f} M parameters, {operations / 1e9:.1f} GFLOPs at {size[0]} x {size[1]}")


def doctor(argv: Sequence[str]) -> None:
    """`internimage doctor`: which implementations of the operator run here."""
    argparse.ArgumentParser(prog="internimage doctor", description=doctor.__doc__).parse_args(argv)
    print(report())
