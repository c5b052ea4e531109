"""`image_demo.py`: run a model on one image and draw the result."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, exit_on_user_error
from ..predictor import choose_device
from .checks import SettingsAction
from .predictor import MMPredictor, add_model_arguments, load_model, resolve_model
from .tasks import Task

__all__ = ["image_demo"]


@exit_on_user_error
def image_demo(task: Task, argv: Sequence[str] | None = None) -> None:
    """`image_demo.py IMAGE [CONFIG] CHECKPOINT`: write a picture of the result."""
    parser = argparse.ArgumentParser(description=f"Run a {task.name} model on an image and draw the result.")
    parser.add_argument("image", help="image file")
    add_model_arguments(parser)
    parser.add_argument("--out", "--output", type=Path, help="picture to write; defaults to NAME_OF_IMAGE_result.jpg")
    parser.add_argument("--score-thr", type=float, default=0.3, help="draw detections with at least this score")
    parser.add_argument("--device", help="defaults to the GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=SettingsAction, metavar="KEY=VALUE", help="change settings")
    args = parser.parse_args(argv)
    if not Path(args.image).is_file():
        raise UserError(f"no image at {args.image}")
    device = choose_device(args.device)
    config, checkpoint = resolve_model(args)
    out = args.out or Path(f"{Path(args.image).stem}_result.jpg")
    out.parent.mkdir(parents=True, exist_ok=True)
    (result,) = MMPredictor(load_model(config, checkpoint, device)).predict(args.image, threshold=args.score_thr)
    result.plot().save(out)
    print(f"{args.image}: {result.summary()}; drawn to {out}")
