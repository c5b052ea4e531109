"""The command line of `detection/export.py` and `segmentation/export.py`."""

import argparse
from collections.abc import Callable, Sequence

from internimage.errors import ArgumentParser, exit_on_user_error
from internimage.export.cli import add_arguments, check_arguments, run
from internimage.mm.predictor import add_model_arguments, resolve_model

from .models import Parts, Prepare, build_model

__all__ = ["export"]


@exit_on_user_error
def export(description: str, parts: Callable[..., Parts], prepare: Prepare, argv: Sequence[str] | None = None) -> None:
    """Build the model and write it; `parts` is `detector_parts` or `segmentor_parts`, `prepare` is `predict_onnx`'s."""
    parser = ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser, positional=False)
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    config, checkpoint = resolve_model(args, random_weights=True)
    exportable, check, calibration = parts(build_model(config, checkpoint), args, prepare)
    run(exportable, check, args, calibration)
