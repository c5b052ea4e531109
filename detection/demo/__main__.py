"""Compose pictures of garments, train a small Mask R-CNN InternImage on them, evaluate it, and draw what it finds.

    python -m detection.demo [--output output] [--cfg-options KEY=VALUE ...]

Every step is an ordinary command, printed before it runs. Started again, a finished step is left alone or quick, and a
training that was interrupted goes on from its latest epoch.
"""

import argparse
import time
from pathlib import Path

from demo.compose import photograph_path
from demo.steps import last_checkpoint, run
from internimage.errors import exit_on_user_error

__all__ = ["main"]

CONFIG = "detection/configs/demo/mask_rcnn_internimage_demo.py"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m detection.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output", metavar="DIR", help="results go to DIR/demo_detection")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change settings")
    args = parser.parse_args(argv)

    started = time.perf_counter()
    folder = Path(args.output, "demo_detection")
    options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    run("-m", "demo.compose", "--out", "data/composites")
    run("detection/train.py", CONFIG, "--work-dir", folder, "--resume", *options)
    checkpoint = last_checkpoint(folder)
    run("detection/test.py", CONFIG, checkpoint, "--work-dir", folder / "test", *options)
    run("detection/demo/pictures.py", CONFIG, checkpoint, "--out", folder / "detections.png")
    photograph = photograph_path("astronaut.png")
    run("detection/image_demo.py", photograph, CONFIG, checkpoint, "--out", folder / "photograph.jpg")
    minutes = (time.perf_counter() - started) / 60
    print(f"\ndone in {minutes:.1f} minutes; pictures: {folder / 'detections.png'}, {folder / 'photograph.jpg'}")


if __name__ == "__main__":
    main()
