"""Run a TensorRT engine on one image, print the result, and draw it.

    python tensorrt/infer.py model.engine photo.jpg --output picture.png

Pre-processing and class names come from the engine's description (`model.engine.json`).
State: never run with TensorRT, nor on a GPU; its calls were checked as `internimage/export/tensorrt.py` says.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from internimage.errors import UserError, exit_on_user_error
from internimage.export.tensorrt_engine import Engine
from predict_onnx import Mistake, Model, show


class EngineModel(Model):
    """An engine instead of an ONNX file."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.outputs = engine, engine.about["outputs"]
        try:
            self.read_metadata(engine.about["metadata"])
        except ValueError as error:
            raise UserError(f"the ONNX file of this engine cannot be used: {error}; export it again") from None
        smallest, _, largest = (tuple(shape[2:]) for shape in engine.ranges)
        self.fixed = smallest if smallest == largest else None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return self.engine(images)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine", type=Path, help="file of tensorrt/build.py, or of --format tensorrt")
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("--output", "--out", type=Path, help="picture of the result to write")
    parser.add_argument("--threshold", type=float, help="lowest score shown; defaults to the model's")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="for --core custom")
    args = parser.parse_args(argv)
    model = EngineModel(Engine(args.engine, plugins=args.plugin))
    try:
        show(lambda: model, args.engine, args.image, args.output, args.threshold)
    except Mistake as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    main()
