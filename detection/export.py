r"""Export a detector to another runtime, compare it with PyTorch, and time it.

    python detection/export.py detection/configs/demo/mask_rcnn_internimage_demo.py \
        --checkpoint CHECKPOINT --output demo.onnx
    python detection/export.py CONFIG --checkpoint CHECKPOINT --images FOLDER --output model.onnx
    python detection/export.py detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py \
        --output random.onnx --size 256 320 --repeats 0

The file takes normalised images and returns boxes, labels and masks after non-maximum suppression. Its metadata have
the preprocessing, which `predict_onnx.py` follows. Without --checkpoint the weights are random; without --images the
check uses scikit-image's photographs. A file that disagrees with PyTorch is renamed to *.failed.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.export.cli import export
from internimage.mm.export.models import detector_parts
from predict_onnx import prepare

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    export(__doc__, detector_parts, prepare, argv)


if __name__ == "__main__":
    main()
