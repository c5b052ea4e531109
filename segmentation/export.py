"""Write a segmentor for another runtime, compare it with PyTorch and with mmseg, and time it.

    python segmentation/export.py segmentation/configs/demo/upernet_internimage_demo.py \
        --checkpoint CHECKPOINT --output demo.onnx
    python segmentation/export.py CONFIG --checkpoint CHECKPOINT --images FOLDER --output model.onnx
    python segmentation/export.py segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py \
        --output random.onnx --size 256 320 --repeats 0

The file takes normalised images and gives label maps and their scores. How to make images of pictures is in its
metadata; `predict_onnx.py` does it. Without --checkpoint the weights are random; without --images the photographs of
the check are scikit-image's. A file that disagrees with PyTorch is renamed to *.failed.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mmengine.config import DictAction

import segmentation.models  # noqa: F401 - before mmseg
from internimage.errors import exit_on_user_error
from internimage.export.cli import add_arguments, check_arguments, run
from internimage.export.mm import build_model, segmentor_exportable
from internimage.integrations.mm_checks import merge_options, read_config

__all__ = ["main"]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration file")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to change")
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_arguments(args)
    from predict_onnx import prepare  # needs onnxruntime, which has now been looked for

    config = read_config(args.config)
    merge_options(config, args.cfg_options)
    run(segmentor_exportable(build_model(config, args.checkpoint), args, prepare), args)


if __name__ == "__main__":
    main()
