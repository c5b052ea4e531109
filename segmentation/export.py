r"""Export a segmentor to another runtime, compare it with PyTorch, and time it.

    python segmentation/export.py segmentation/configs/demo/upernet_internimage_demo.py \
        --checkpoint CHECKPOINT --output demo.onnx
    python segmentation/export.py CONFIG --checkpoint CHECKPOINT --images FOLDER --output model.onnx
    python segmentation/export.py segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py \
        --output random.onnx --size 256 320 --repeats 0

The file takes normalised images and returns label maps and their scores. Its metadata have the preprocessing, which
`predict_onnx.py` follows. Without --checkpoint the weights are random; without --images the check uses scikit-image's
photographs. A file that disagrees with PyTorch is renamed to *.failed.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.mm.export.cli import export
from internimage.mm.export.models import segmentor_parts
from predict_onnx import prepare

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    export(__doc__, segmentor_parts, prepare, argv)


if __name__ == "__main__":
    main()
