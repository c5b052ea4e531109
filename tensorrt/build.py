"""Build a TensorRT engine from an exported ONNX file.

    python tensorrt/build.py model.onnx --size 224 --batch-size 1 1 8

State: run with TensorRT for RTX 1.7 on a machine without a GPU; never with `tensorrt` 10 or 11.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from internimage.errors import UserError, exit_on_user_error
from internimage.export.tensorrt import Range, build
from internimage.export.tensorrt_engine import library


def _range(numbers: list[int] | None, option: str) -> Range | None:
    if numbers and len(numbers) not in (1, 3):
        raise UserError(f"{option} takes one number, or smallest, usual and largest; got {numbers}")
    return numbers and tuple(numbers * 3)[:3]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("onnx", type=Path, help="file of --format onnx (float32, --half or --int8 --symmetric)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="engine to write; defaults to ONNX.engine")
    parser.add_argument("--library", choices=("tensorrt", "tensorrt_rtx"), help="defaults to the first one installed")
    sizes = parser.add_argument_group("free sizes of the file: one number, or smallest, usual and largest")
    sizes.add_argument("--batch-size", "--batch", dest="batch", type=int, nargs="+", default=[1], metavar="N")
    sizes.add_argument("--size", type=int, nargs="+", metavar="PIXELS", help="height and width")
    sizes.add_argument("--height", type=int, nargs="+", metavar="PIXELS", help="if it differs from --size")
    sizes.add_argument("--width", type=int, nargs="+", metavar="PIXELS", help="if it differs from --size")
    parser.add_argument("--tf32", action="store_true", help="round the factors of float32 products to 10 bits")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="for --core custom")
    args = parser.parse_args(argv)
    output = args.output or args.onnx.with_suffix(".engine")
    about = build(
        args.onnx,
        output,
        batch=_range(args.batch, "--batch-size"),
        height=_range(args.height or args.size, "--height or --size"),
        width=_range(args.width or args.size, "--width or --size"),
        tf32=args.tf32,
        plugins=args.plugin,
        trt=library(args.library),
    )
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {about['library']} {about['version']}")
    for name, shapes in about["inputs"].items():
        print(f"  {name}: " + ", ".join("x".join(map(str, shape)) for shape in shapes))
    if about["gpu"] is None:
        print("  not run: there is no GPU here")


if __name__ == "__main__":
    main()
