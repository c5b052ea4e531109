"""Images per second of T, S, B, L and XL with TensorRT, one image at a time, as the original project's table has them.

    python tensorrt/benchmark.py --half
    python tensorrt/benchmark.py --models t s --half --plugin tensorrt/plugin/build/libops_dcnv3_tensorrt.so

Timed is what the GPU does, from the first kernel to the last, the image on it already. The original project's column
names neither the GPU nor the types that it was measured with.
State: never run with TensorRT, nor on a GPU; its calls were checked as `internimage/export/tensorrt.py` says.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

import internimage
from internimage.errors import UserError, exit_on_user_error
from internimage.export.exportable import Exportable, Logits
from internimage.export.tensorrt import BuildOptions, build
from internimage.export.tensorrt_engine import DEVICE, Engine
from internimage.export.tensorrt_library import library, require_gpu
from ops_dcnv3 import DCNv3

__all__ = ["images_per_second", "main", "scattered", "table"]

# Model, resolution, and the original project's images per second.
ROWS = {
    "t": ("internimage_t_1k_224", 224, 156),
    "s": ("internimage_s_1k_224", 224, 129),
    "b": ("internimage_b_1k_224", 224, 116),
    "l": ("internimage_l_22kto1k_384", 384, 56),
    "xl": ("internimage_xl_22kto1k_384", 384, 47),
}


def scattered(model: nn.Module) -> nn.Module:
    """Give a new model offsets as a trained one has them: its own are zero, and reading in order would flatter it."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, DCNv3):
            nn.init.normal_(layer.offset.bias, std=1.0, generator=generator)
            nn.init.normal_(layer.offset.weight, std=0.02, generator=generator)
    return model


def images_per_second(engine: Engine, size: int, repeats: int, warmup: int = 50) -> float:
    """From the median time of one inference of one image, measured on the GPU."""
    with torch.cuda.stream(engine.stream):
        images = torch.rand(1, 3, size, size, device=DEVICE)
        outputs = engine.bind(images)  # kept alive while the engine writes to them
        for _ in range(warmup):
            engine.enqueue()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record(engine.stream)
        for event in events[1:]:
            engine.enqueue()
            event.record(engine.stream)
        engine.stream.synchronize()
        del outputs
    return 1e3 / statistics.median(first.elapsed_time(second) for first, second in zip(events, events[1:]))


def table(speeds: dict[str, float]) -> str:
    """The results in Markdown."""
    lines = ["| model | resolution | images/s | original project |", "|---|--:|--:|--:|"]
    for key, speed in speeds.items():
        name, size, original = ROWS[key]
        lines.append(f"| {name} | {size} | {speed:.0f} | {original} |")
    return "\n".join(lines)


def measure(key: str, args: argparse.Namespace, folder: Path) -> float:
    """Export, build and time one model."""
    from internimage.export.onnx import write

    name, size, _ = ROWS[key]
    model = internimage.create_model(name, pretrained=args.pretrained).eval()
    if not args.pretrained:
        scattered(model)
    images = torch.zeros(1, 3, size, size)
    exportable = Exportable(Logits(model), ("logits",), (size, size), {}, [images], dynamic=False)
    onnx_path, engine_path = folder / f"{name}.onnx", folder / f"{name}.engine"
    write(exportable, onnx_path, core="custom" if args.plugin else "grid_sample", half=args.half)
    build(onnx_path, engine_path, BuildOptions(plugins=args.plugin, timing_cache=args.timing_cache), library())
    return images_per_second(Engine(engine_path, plugins=args.plugin), size, args.repeats)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="NAME")
    parser.add_argument("--half", action="store_true", help="float16")
    parser.add_argument("--pretrained", action="store_true", help="released weights (default: random ones)")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="SO", help="use DCNv3's plugin")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel timings, kept between builds")
    parser.add_argument("--repeats", type=int, default=500)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats must be at least 1; got {args.repeats}")
    if args.plugin and not args.half:
        raise UserError("--plugin needs --half: float32 files of --core custom have nodes of ONNX Runtime's own")
    trt = library()
    require_gpu("timing")
    print(f"{trt.__name__} {trt.__version__}, {torch.cuda.get_device_name()}, {'float16' if args.half else 'float32'}")
    with tempfile.TemporaryDirectory() as folder:
        print(table({key: measure(key, args, Path(folder)) for key in args.models}))


if __name__ == "__main__":
    main()
