"""Unpack the embedded images, train a small InternImage on them, evaluate it, and draw pictures.

    python -m classification.demo [--output output] [--opts KEY VALUE ...]

Each step is a command, which is printed before it runs. When started again, an interrupted training is resumed, and
finished steps take seconds.
"""

import time
from pathlib import Path

from demo.steps import ROOT, run
from internimage.errors import ArgumentParser
from internimage.options import add_settings

__all__ = ["main"]

IMAGES = ROOT / "data/fashion_mnist/val"


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m classification.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output", metavar="DIR", help="results go to DIR/demo")
    add_settings(parser)
    args = parser.parse_args(argv)

    started = time.perf_counter()
    folder = Path(args.output, "demo")
    best = folder / "ckpt_epoch_best.pth"
    config = ["--cfg", "classification/configs/demo.yaml"]
    opts = ["--opts", *args.opts] if args.opts else []
    run("demo/unpack.py")
    run("classification/train.py", *config, "--output", args.output, *opts)
    run("classification/train.py", *config, "--eval", "--resume", best, *opts)
    images = sorted(IMAGES.glob("*/0000.png"))[::3]
    run("-m", "internimage", "visualize", *images, "--checkpoint", best, "--output", folder / "pictures")
    minutes = (time.perf_counter() - started) / 60
    print(
        f"\ndone in {minutes:.1f} minutes; pictures are in {folder}, in report and pictures, all curves in TensorBoard:"
    )
    print(f"$ python -m tensorboard.main --logdir {folder}")


if __name__ == "__main__":
    main()
