r"""Classify one image: print the five most probable classes and, with --output, write a picture.

    python classification/predict.py --model internimage_t_1k_224 --image photo.jpg --output prediction.png
    python classification/predict.py --cfg classification/configs/demo.yaml \
        --checkpoint output/demo/ckpt_epoch_best.pth --image data/fashion_mnist/val/Bag/0000.png
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image

from classification.figures.predictions import prediction_picture
from classification.inference import Classifier, add_model_arguments, load_classifier, read_image
from internimage.errors import exit_on_user_error
from internimage.figures import save_figure

__all__ = ["predict"]


def predict(classifier: Classifier, image: Image.Image, count: int = 5) -> list[tuple[str, float]]:
    """The `count` most probable classes of an RGB image, as (name, probability), in descending order."""
    probabilities = classifier.logits(classifier.transform(image)[None])[0].softmax(0)
    values, indices = probabilities.topk(min(count, len(probabilities)))
    return [(classifier.class_names[index], value) for index, value in zip(indices.tolist(), values.tolist())]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write a picture (.png, .pdf, .svg)")
    args = parser.parse_args(argv)

    image = read_image(args.image)
    ranking = predict(load_classifier(args), image)
    for name, probability in ranking:
        print(f"{probability:7.2%}  {name}")
    if args.output:
        save_figure(prediction_picture(image, ranking), args.output)


if __name__ == "__main__":
    main()
