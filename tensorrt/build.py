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
    parser.add_argument("onnx", type=Path, help="file of --format onnx (float32, --half, or int8)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="engine to write (default: beside, .engine)")
    parser.add_argument("--library", choices=("tensorrt", "tensorrt_rtx"), help="default: the first one installed")
    sizes = parser.add_argument_group("sizes of a file that takes any: one number, or smallest, usual and largest")
    sizes.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N")
    sizes.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="of height and width")
    sizes.add_argument("--height", type=int, nargs="+", metavar="PIXELS", help="where it differs")
    sizes.add_argument("--width", type=int, nargs="+", metavar="PIXELS", help="where it differs")
    types = parser.add_argument_group("types (other than the file's: TensorRT 10 only)")
    types.add_argument("--tf32", action="store_true", help="round factors of float32 products to 10 bits")
    types.add_argument("--fp16", action="store_true", help="let TensorRT choose float16")
    types.add_argument(
        "--calibration", type=Path, metavar="NPY", help="normalised float32 images (N, 3, H, W), to choose int8 with"
    )
    parser.add_argument("--workspace", type=float, metavar="GIB", help="upper limit of temporary GPU memory")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, kept between builds")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="for --core custom")
    return parser.parse_args(argv)


def options_of(args: argparse.Namespace) -> BuildOptions:
    """What the command line asks for."""
    height, width = args.height or args.size, args.width or args.size
    batch = _range(args.batch, "--batch")
    return BuildOptions(
        batch=batch,
        height=height and _range(height, "--height or --size"),
        width=width and _range(width, "--width or --size"),
        tf32=args.tf32,
        half=args.fp16,
        calibration=args.calibration and _batches(args.calibration, batch[1]),
        workspace=args.workspace and int(args.workspace * 2**30),
        timing_cache=args.timing_cache,
        plugins=args.plugin,
        metadata=_metadata(args.onnx),
    )


def _range(numbers: list[int], option: str) -> Range:
    if len(numbers) not in (1, 3):
        raise UserError(f"{option} takes one number, or smallest, usual and largest; got {numbers}")
    return tuple(numbers * 3)[:3]


def _batches(path: Path, batch: int) -> list[np.ndarray]:
    try:
        images = np.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array of images: {error}") from None
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32 or len(images) < batch:
        expected = f"float32 (N, 3, H, W) with N of at least {batch}"
        raise UserError(f"{path} holds {images.dtype} {images.shape}; expected {expected}")
    return [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)]


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
    output = args.output or args.onnx.with_suffix(".engine")
    about = build(args.onnx, output, options_of(args), library(args.library))
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {about['library']} {about['version']}")
    for name, shapes in about["inputs"].items():
        print(f"  {name}: " + ", ".join("x".join(map(str, shape)) for shape in shapes))
    if about["gpu"] is None:
        print("  not run: there is no GPU here")


if __name__ == "__main__":
    main()
