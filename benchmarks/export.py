"""Exported models next to timm's ConvNeXt of the same size, exported and run in the same way.

    python benchmarks/export.py --runtimes onnx:grid_sample onnx:deform_conv openvino:grid_sample aoti:custom

Every repeat calls each contestant once, in turn, so that a busy machine slows all of them alike; reported are medians
of CPU time (of all threads of the process) and wall time. Ratios are to ConvNeXt in the same runtime and to ConvNeXt in
ONNX Runtime. Files are written once to --folder and kept there. Results: docs/deploy.md.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import timm
import torch

import internimage
from internimage.errors import exit_on_user_error
from internimage.export.formats import FORMATS, Format, find_format
from internimage.export.parity import Time, interleaved_times
from internimage.export.spec import Exportable, Logits, spread_sampling_points

__all__ = ["main"]

SIZES = {"t": "tiny", "s": "small", "b": "base"}


def _exportable(name: str, image: int, batch: int, dynamic: bool) -> Exportable:
    torch.manual_seed(0)
    model = timm.create_model(name) if name.startswith("convnext") else internimage.create_model(name)
    spread_sampling_points(model)
    images = torch.randn(batch, 3, image, image)
    return Exportable(Logits(model).eval(), images, ("logits",), dynamic=dynamic)


def _plan(names: list[str]) -> list[tuple[Format, str]]:
    """Formats and cores of names such as `onnx:grid_sample`."""
    plan = []
    for name in names:
        form_name, _, core = name.partition(":")
        form = find_format(form_name)
        plan.append((form, form.choose(core)))
    return plan


def measure(args: argparse.Namespace) -> tuple[dict[str, Time], dict[str, str]]:
    """Times of every contestant, and to which ConvNeXt each is compared."""
    models = {
        f"ConvNeXt-{args.model.upper()}": f"convnext_{SIZES[args.model]}",
        f"InternImage-{args.model.upper()}": f"internimage_{args.model}_1k_224",
    }
    (rival, rival_name), (ours, our_name) = models.items()
    exportables = {name: _exportable(name, args.size, args.batch, not args.static) for name in models.values()}
    images = exportables[our_name].images
    array = images.numpy()
    steps, rivals = {}, {}
    for label, name in models.items():
        steps[f"{label}, PyTorch"] = lambda model=exportables[name].model: model(images)
        rivals[f"{label}, PyTorch"] = f"{rival}, PyTorch"
    plan = _plan(args.runtimes)
    for form in {form.name: form for form in (FORMATS["onnx"], *(form for form, _ in plan))}.values():
        contestants = [(f"{rival}, {form.name}", rival_name, form.cores[0])]
        contestants += [(f"{ours}, {form.name}, {core}", our_name, core) for other, core in plan if other is form]
        for label, name, core in contestants:
            suffix = "static" if args.static else "dynamic"
            path = args.folder / f"{name}_{core}_{args.size}_{suffix}{form.suffix}"
            if not path.exists():
                form.write(exportables[name], path, core=core, half=False)
            runtime = form.load(path, threads=args.threads)
            steps[label], rivals[label] = (lambda runtime=runtime: runtime(array)), f"{rival}, {form.name}"
    with torch.inference_mode():
        return interleaved_times(steps, args.repeats, warmup=3), rivals


def table(times: dict[str, Time], rivals: dict[str, str], base: str) -> str:
    """Markdown; ratios of CPU time."""
    lines = [
        f"| Model | CPU ms | wall ms | to ConvNeXt in the same runtime | to {base} |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (cpu, wall) in times.items():
        ratios = f"{cpu / times[rivals[name]].cpu:.2f} | {cpu / times[base].cpu:.2f}"
        lines.append(f"| {name} | {1e3 * cpu:.1f} | {1e3 * wall:.1f} | {ratios} |")
    return "\n".join(lines)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Export, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runtimes", nargs="+", metavar="FORMAT:CORE", default=["onnx:grid_sample", "onnx:deform_conv"]
    )
    parser.add_argument("--model", choices=SIZES, default="t")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--static", action="store_true", help="files for this batch and size only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("output/export_benchmark"), help="of the exported files")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    times, rivals = measure(args)
    print(f"torch {torch.__version__}, batch {args.batch}, {args.size}x{args.size}, {args.threads} thread(s)\n")
    print(table(times, rivals, f"ConvNeXt-{args.model.upper()}, onnx"))


if __name__ == "__main__":
    main()
