"""Run a TensorRT engine on one image: prints what it finds, and draws it.

    python tensorrt/infer.py model.engine photo.jpg --out picture.png

Pre-processing and class names come from the description beside the engine (`model.engine.json`).
State: never run with TensorRT, nor on a GPU; its calls were checked as `internimage/export/tensorrt.py` says.
"""

import argparse
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from internimage.errors import UserError, exit_on_user_error
from internimage.export.tensorrt_engine import Engine
from internimage.images import decode_rgb
from predict_onnx import Model, Prepared, classify, detect, prepare, segment

__all__ = ["EngineModel"]

TASKS = {"classification": classify, "detection": detect, "segmentation": segment}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


class EngineModel(Model):
    """An engine in the place of an ONNX file."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.meta = {key: _value(text) for key, text in engine.about["metadata"].items()}
        if self.meta.get("task") not in TASKS:
            raise UserError("the engine has no metadata of its model: build it with the onnx package installed")
        (ranges,) = engine.about["inputs"].values()
        smallest, usual, largest = (tuple(shape[2:]) for shape in ranges)
        self.fixed = usual if smallest == largest else None

    def __call__(self, image: Image.Image) -> tuple[dict[str, np.ndarray], Prepared]:
        prepared = prepare(image, self.meta, self.fixed)
        outputs = self.engine(prepared.images)
        return {name: value[0] for name, value in zip(self.engine.about["outputs"], outputs)}, prepared


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine", type=Path, help="file of tensorrt/build.py, or of --format tensorrt")
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("--out", type=Path, help="picture to write with the result drawn into it")
    parser.add_argument("--threshold", type=float, help="lowest score shown; default: the model's")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="for --core custom")
    args = parser.parse_args(argv)
    try:
        image = decode_rgb(args.image)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(f"{args.image} is not a readable image: {error}; give a good image") from None
    model = EngineModel(Engine(args.engine, plugins=args.plugin))
    threshold = args.threshold if args.threshold is not None else float(model.meta.get("threshold", 0))
    picture = TASKS[model.meta["task"]](model, image, threshold)
    if args.out:
        picture.save(args.out)
        print(f"drawn to {args.out}")


if __name__ == "__main__":
    main()
