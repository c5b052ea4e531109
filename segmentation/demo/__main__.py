"""Compose pictures of garments, train a small UperNet InternImage to label their pixels, evaluate it, and draw.

    python -m segmentation.demo [--output output] [--cfg-options KEY=VALUE ...]

Every step is an ordinary command, printed before it runs. Started again, a finished step is left alone or quick, and a
training that was interrupted goes on from its latest checkpoint.
"""

import argparse
import time
from pathlib import Path

from demo.compose import photograph_path
from demo.steps import last_checkpoint, run
from internimage.errors import exit_on_user_error

__all__ = ["main"]

CONFIG = "segmentation/configs/demo/upernet_internimage_demo.py"
PHOTOGRAPHS = ("astronaut.png", "chelsea.png")  # none that composites for training were made of


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m segmentation.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="output", metavar="DIR", help="results go to DIR/demo_segmentation")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="change settings")
    args = parser.parse_args(argv)

    started = time.perf_counter()
    folder = Path(args.output, "demo_segmentation")
    options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    run("-m", "demo.compose", "--out", "data/composites")
    run("segmentation/train.py", CONFIG, "--work-dir", folder, "--resume", *options)
    checkpoint = last_checkpoint(folder)
    run("segmentation/test.py", CONFIG, checkpoint, "--work-dir", folder / "test", *options)
    run("segmentation/demo/pictures.py", CONFIG, checkpoint, "--out", folder / "label_maps.png")
    for name in PHOTOGRAPHS:
        picture = folder / f"{Path(name).stem}.jpg"
        run("segmentation/image_demo.py", photograph_path(name), CONFIG, checkpoint, "--out", picture)
    minutes = (time.perf_counter() - started) / 60
    print(f"\ndone in {minutes:.1f} minutes; pictures are in {folder}, all curves in TensorBoard:")
    print(f"$ python -m tensorboard.main --logdir {folder}")


if __name__ == "__main__":
    main()
