"""`image_demo.py`: run a model on one image and draw the result."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgumentParser, exit_on_user_error
from ..figures import picture_path, save_figure
from ..images import read_image
from ..predictor import choose_device
from .predictor import MMPredictor, add_model_arguments, load_model, resolve_model
from .tasks import Task

__all__ = ["image_demo"]


@exit_on_user_error
def image_demo(task: Task, argv: Sequence[str] | None = None) -> None:
    """`image_demo.py IMAGE [CONFIG] CHECKPOINT`: write a picture of the result."""
    parser = ArgumentParser(description=f"Run a {task.name} model on an image and draw the result.")
    parser.add_argument("image", help="image file")
    add_model_arguments(parser)
    help = "picture to write; defaults to NAME_OF_IMAGE_result.jpg"
    parser.add_argument("--output", "--out", type=picture_path, metavar="FILE", help=help)
    help = "lowest score of an object; default: %(default)s"
    parser.add_argument("--threshold", "--score-thr", type=float, default=0.3, help=help)
    parser.add_argument("--device", help="defaults to the GPU if there is one")
    args = parser.parse_args(argv)
    image, device = read_image(args.image), choose_device(args.device)
    model = MMPredictor(load_model(*resolve_model(args), device))
    (result,) = model.predict(image, threshold=args.threshold)
    print(f"{args.image}: {result.summary()}")
    save_figure(result.plot(), args.output or Path(f"{Path(args.image).stem}_result.jpg"))
