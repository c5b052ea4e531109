"""Build a TensorRT engine from an exported ONNX file.

    python tensorrt/build.py model.onnx --size 224 --batch 1 1 8

State: run with TensorRT for RTX 1.7 on a machine without a GPU; never with `tensorrt` 10 or 11.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from internimage.errors import UserError, exit_on_user_error
from internimage.export.tensorrt import BuildOptions, Range, build
from internimage.export.tensorrt_library import library


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("onnx", type=Path, help="file of --format onnx (float32 or --half)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="engine to write (default: beside, .engine)")
    parser.add_argument("--library", choices=("tensorrt", "tensorrt_rtx"), help="default: the first one installed")
    sizes = parser.add_argument_group("sizes of a file that takes any: one number, or smallest, usual and largest")
    sizes.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N")
    sizes.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="of height and width")
    sizes.add_argument("--height", type=int, nargs="+", metavar="PIXELS", help="where it differs")
    sizes.add_argument("--width", type=int, nargs="+", metavar="PIXELS", help="where it differs")
    parser.add_argument("--tf32", action="store_true", help="round factors of float32 products to 10 bits")
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="NPY",
        help="quantise a float32 file first, by normalised float32 images (N, 3, H, W) such as it will see",
    )
    parser.add_argument("--workspace", type=float, metavar="GIB", help="upper limit of temporary GPU memory")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, kept between builds")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="for --core custom")
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> BuildOptions:
    """What the command line asks for."""
    height, width = args.height or args.size, args.width or args.size
    return BuildOptions(
        batch=_range(args.batch, "--batch"),
        height=height and _range(height, "--height or --size"),
        width=width and _range(width, "--width or --size"),
        tf32=args.tf32,
        workspace=args.workspace and int(args.workspace * 2**30),
        timing_cache=args.timing_cache,
        plugins=args.plugin,
        metadata=_metadata(args.onnx),
    )


def _range(numbers: list[int], option: str) -> Range:
    if len(numbers) not in (1, 3):
        raise UserError(f"{option} takes one number, or smallest, usual and largest; got {numbers}")
    return tuple(numbers * 3)[:3]


def _images(path: Path) -> np.ndarray:
    try:
        images = np.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array of images: {error}") from None
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32 or not len(images):
        raise UserError(f"{path} holds {images.dtype} {images.shape}; expected float32 (N, 3, H, W)")
    return images


def quantized(source: Path, images_path: Path) -> Path:
    """The int8 version of an ONNX file, beside it."""
    images = _images(images_path)
    try:
        from internimage.export.tensorrt_int8 import quantize
    except ImportError as error:
        raise UserError(f"--int8 needs onnx and onnxruntime: pip install onnx onnxruntime ({error})") from None
    if not source.is_file():
        raise UserError(f"{source} does not exist; export a model with --format onnx first")
    path = source.with_name(f"{source.stem}.int8.onnx")
    quantize(source, images, path)
    return path


def _metadata(path: Path) -> dict[str, str]:
    """What the exporter wrote into the file about its use; nothing where the onnx package is missing."""
    try:
        import onnx
    except ImportError:
        return {}
    try:
        return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    except Exception:  # not an ONNX file: TensorRT's parser will say so
        return {}


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    trt, options = library(args.library), options_of(args)
    source = quantized(args.onnx, args.int8) if args.int8 else args.onnx
    output = args.output or source.with_suffix(".engine")
    about = build(source, output, options, trt)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {about['library']} {about['version']}")
    for name, shapes in about["inputs"].items():
        print(f"  {name}: " + ", ".join("x".join(map(str, shape)) for shape in shapes))
    if about["gpu"] is None:
        print("  not run: there is no GPU here")


if __name__ == "__main__":
    main()
