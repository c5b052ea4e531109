r"""Classify one image: print the five most probable classes and, with --output, write a picture.

python classification/predict.py photo.jpg --model internimage_t_1k_224 --output prediction.png
python classification/predict.py data/fashion_mnist/val/Bag/0000.png --checkpoint output/demo/ckpt_epoch_best.pth
"""

import sys
from argparse import SUPPRESS
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from classification.inference import ClassificationPredictor, add_model_arguments, load_classifier
from internimage.errors import ArgumentParser, exit_on_user_error
from internimage.figures import picture_path, save_figure
from internimage.images import read_image

__all__ = ["main"]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("image", nargs="?", default=SUPPRESS, help="image file")
    which.add_argument("--images", "--image", dest="image", metavar="FILE", help="the same")
    parser.add_argument("--output", metavar="FILE", type=picture_path, help="picture to write (.png, .jpg, .pdf, ...)")
    args = parser.parse_args(argv)

    image = read_image(args.image)
    (result,) = ClassificationPredictor(load_classifier(args)).predict(image)
    for name, probability in zip(result.names, result.scores):
        print(f"{probability:7.2%}  {name}")
    if args.output:
        save_figure(result.plot(), args.output)


if __name__ == "__main__":
    main()
