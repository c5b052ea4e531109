"""What the tasks' `export.py` share: options, and writing, checking and timing a file."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from internimage.errors import UserError

from .cores import CORES
from .formats import FORMATS, Format, Runtime, find_format
from .parity import (
    check_parity,
    default_tolerance,
    interleaved_times,
    latency_table,
    match_warning,
    parity_table,
    require_parity,
)
from .progress import phase
from .spec import Check, Exportable

__all__ = ["add_arguments", "check_arguments", "image_size", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` and the task's script read."""
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument("--format", default="onnx", metavar="NAME", help=f"{', '.join(FORMATS)}; defaults to onnx")
    parser.add_argument(
        "--core",
        metavar="NAME",
        help=f"form of the operator: {', '.join(CORES)}; defaults to the most widely supported one of the format; "
        "deform_conv is faster in ONNX Runtime 1.32, custom needs this project's kernels or its TensorRT plugin",
    )
    parser.add_argument("--half", action="store_true", help="float16 weights and activations")
    parser.add_argument(
        "--int8", action="store_true", help="write --output as int8, and NAME.float32 next to it; needs --images"
    )
    parser.add_argument("--symmetric", action="store_true", help="with --int8: no zero points, as TensorRT requires")
    parser.add_argument("--size", nargs="+", type=int, metavar="PIXELS", help="one number, or height and width")
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--dynamic", action="store_true", help="any batch and size (the default)")
    shapes.add_argument("--static", action="store_true", help="only --batch-size and --size; slightly faster")
    help = "images per call, with --static and in the timing"
    parser.add_argument("--batch-size", "--batch", dest="batch", type=int, default=1, metavar="N", help=help)
    parser.add_argument(
        "--images", metavar="PATH", type=Path, help="image, or folder of images, for the check and --int8"
    )
    parser.add_argument("--tolerance", type=float, help="largest relative error allowed (1e-4; with --half 5e-2)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads for check and timing")
    parser.add_argument("--repeats", type=int, default=10, help="number of timed calls; 0 skips the timing")


def image_size(args: argparse.Namespace, default: tuple[int, int], multiple: int = 1) -> tuple[int, int]:
    """Height and width that --size asks for. Raises `UserError` if the model does not support them."""
    size = tuple(args.size or default)
    size = size * 2 if len(size) == 1 else size
    if len(size) != 2 or min(size) < 32:
        raise UserError(f"--size takes one number or a height and a width, each at least 32; got {args.size}")
    if any(length % multiple for length in size):
        raise UserError(f"--size must be multiples of {multiple} for this model; got {size[0]}x{size[1]}")
    return size


def check_arguments(args: argparse.Namespace) -> tuple[Format, str]:
    """The format and the core of the options. Raises `UserError` for invalid options."""
    form = find_format(args.format)
    core = form.choose(args.core)
    form.check_path(args.output)
    if args.int8 and not args.images:
        raise UserError("--int8 needs --images, a folder of some hundred typical images")
    if args.int8 and not form.int8:
        able = " and ".join(item.name for item in FORMATS.values() if item.int8)
        raise UserError(f"--int8 is supported by the formats {able}; got {form.name}")
    if args.int8 and args.half:
        raise UserError("--int8 and --half cannot be combined; give one of them")
    if args.int8 and core == "custom":
        raise UserError("--int8 does not support --core custom; omit --core")
    if args.symmetric and not args.int8:
        raise UserError("--symmetric needs --int8; give both")
    return form, core


def run(
    exportable: Exportable, check: Check, args: argparse.Namespace, calibration: Sequence[Tensor] = ()
) -> dict[str, Runtime]:
    """Write the file, compare it with PyTorch, time both, print. Return the files' runtimes by name.

    Args:
        exportable: the model.
        check: how to compare the file.
        args: options of `add_arguments`.
        calibration: real images `(1, 3, H, W)`, from which --int8 takes the ranges of values.

    Raises:
        UserError: invalid options, or results that differ too much from PyTorch's; the file then ends in `.failed`.
    """
    form, core = check_arguments(args)
    torch.set_num_threads(args.threads)
    # With --int8 the float32 file is kept.
    path = args.output.with_name(f"{args.output.stem}.float32{form.suffix}") if args.int8 else args.output
    form.write(exportable, path, core=core, half=args.half)
    with phase(f"Loading {path}"):
        runtime = form.load(path, threads=args.threads)
    with phase("Comparing it with PyTorch"):
        # A given tolerance is strict: the model's own jumps do not count.
        limit = math.inf if args.tolerance else default_tolerance(args.half)
        rows = check_parity(exportable, check, runtime, limit)
    precision = "float16" if args.half else "float32"
    print(f"{path}: {form.name}, {core}, {precision}\n\n{parity_table(rows, check.source)}\n")
    require_parity(rows, path, args.tolerance or limit)
    if warning := match_warning(rows):
        print(f"{warning}\n")
    runtimes = {f"{form.name} ({core})": runtime}
    if args.int8:
        from .quantize import write_int8  # needs onnx and onnxruntime, which are optional

        write_int8(exportable, path, args.output, calibration, core=core, symmetric=args.symmetric)
        runtimes[f"{form.name} int8"] = quantized = form.load(args.output, threads=args.threads)
        print(f"{args.output}: int8\n\n{parity_table(check_parity(exportable, check, quantized), check.source)}\n")
    if form.name == "onnx" and core == "custom":
        print("Not timed: TensorRT runs this file, with the plugin of tensorrt/plugin.")
    elif args.repeats:
        with phase("Timing"):
            times = _times(exportable, runtimes, args)
        shape = " x ".join(map(str, (args.batch, *exportable.images.shape[1:])))
        print(f"Latency at {shape}, {args.threads} thread{'s' * (args.threads > 1)}, median of {args.repeats}:\n")
        print(latency_table(times))
    return runtimes


def _times(exportable: Exportable, runtimes: dict[str, Runtime], args: argparse.Namespace) -> dict:
    images = exportable.images[:1].repeat(args.batch, 1, 1, 1)
    array = images.numpy()
    with torch.inference_mode():
        steps = {f"PyTorch {torch.__version__}": lambda: exportable.model(images)}
        for name, runtime in runtimes.items():
            steps[name] = lambda runtime=runtime: runtime(array)
        return interleaved_times(steps, args.repeats)
