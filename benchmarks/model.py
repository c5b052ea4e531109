"""Whole models on the CPU: InternImage T, S, B next to timm's ConvNeXt and Swin of the same size.

    python benchmarks/model.py --models t s b --batch 1 8 --train-batch 2 --repeats 5 --png model.png

Every repeat times each model once, in turn, so that a busy machine slows all of them alike; reported are medians, and
ratios of medians to ConvNeXt. CPU time is that of all threads of the process. Results: docs/performance.md.
"""

import argparse
import copy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import internimage
from internimage.export.parity import Time, interleaved_times
from internimage.export.spec import spread_sampling_points
from internimage.layers import Block
from ops_dcnv3.onednn import Linear

__all__ = ["main", "saved_bytes"]

SIZES = {"t": "tiny", "s": "small", "b": "base"}
IMAGE = 224


def saved_bytes(model: nn.Module, batch: int) -> int:
    """Bytes of the distinct storages, parameters left out, that one forward pass keeps for backward."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in parameters:
            kept[pointer] = tensor
        return tensor

    def keep_checkpoint(block: Block, args: tuple[Tensor]) -> None:
        if block.with_cp:  # checkpointing keeps its input without telling the hooks
            keep(args[0])

    handles = [m.register_forward_pre_hook(keep_checkpoint) for m in model.modules() if isinstance(m, Block)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, torch.zeros(batch, 3, IMAGE, IMAGE))
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del loss
    for handle in handles:
        handle.remove()
    return total


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # a few per cent faster for ConvNeXt, nothing for Swin


def _with_our_linear_layers(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def contestants(size: str, compiled: bool, training: bool, same_products: bool) -> dict[str, nn.Module]:
    """The models of one size, by the name that the table gives them. ConvNeXt, the yardstick, comes first."""
    torch.manual_seed(0)
    convnext = _channels_last(timm.create_model(f"convnext_{SIZES[size]}"))
    ours = internimage.create_model(f"internimage_{size}_1k_224")
    spread_sampling_points(ours)
    models = {
        f"ConvNeXt-{size.upper()}": convnext,
        f"Swin-{size.upper()}": timm.create_model(f"swin_{SIZES[size]}_patch4_window7_224"),
        f"InternImage-{size.upper()}": ours,
    }
    if same_products:
        for name in list(models)[:2]:
            models[f"{name}, our linear layers"] = _with_our_linear_layers(models[name])
    for model in models.values():
        model.train(training)
    if not training:
        models[f"InternImage-{size.upper()}, optimised"] = ours.optimize_for_inference()
    if compiled and not training:
        for name in (f"ConvNeXt-{size.upper()}", f"InternImage-{size.upper()}"):
            models[f"{name}, compiled"] = torch.compile(models[name], fullgraph=True)
    return models


@torch.inference_mode()
def time_inference(size: str, batch: int, repeats: int, compiled: bool, same_products: bool) -> dict[str, Time]:
    """One forward pass of `batch` images."""
    x = torch.randn(batch, 3, IMAGE, IMAGE)
    models = contestants(size, compiled, False, same_products)
    return interleaved_times({name: lambda model=model: model(x) for name, model in models.items()}, repeats)


def time_training(size: str, batch: int, repeats: int, same_products: bool) -> tuple[dict[str, Time], dict[str, int]]:
    """One forward and backward pass of `batch` images, without the optimizer; and the bytes kept in between."""
    x = torch.randn(batch, 3, IMAGE, IMAGE)
    models = contestants(size, False, True, same_products)

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        _loss(model, x).backward()

    times = interleaved_times(
        {name: lambda model=model: step(model) for name, model in models.items()}, repeats, warmup=1
    )
    kept = {name: saved_bytes(model, batch) for name, model in models.items()}
    ours = models[f"InternImage-{size.upper()}"]
    ours.set_grad_checkpointing()
    kept[f"InternImage-{size.upper()}, checkpointed"] = saved_bytes(ours, batch)
    return times, kept


def table(title: str, times: dict[str, Time], kept: dict[str, int] | None = None) -> str:
    """Markdown; ratios are to the first row."""
    first = next(iter(times))
    lines = [
        f"**{title}**\n",
        "| Model | CPU ms | wall ms | CPU ratio |" + (" saved MB | saved ratio |" if kept else ""),
        "|---|--:|--:|--:|" + ("--:|--:|" if kept else ""),
    ]
    for name in {**times, **(kept or {})}:
        cells = ["", "", ""]
        if name in times:
            cpu, wall = times[name]
            cells = [f"{1e3 * cpu:.0f}", f"{1e3 * wall:.0f}", f"{cpu / times[first].cpu:.2f}"]
        if kept:
            cells += [f"{kept[name] / 2**20:.0f}", f"{kept[name] / kept[first]:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, Time]], path: Path) -> None:
    """CPU time relative to ConvNeXt: one panel for each measurement."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(results), 1, figsize=(8, 1.2 + sum(0.3 * len(times) + 0.6 for times in results.values())), squeeze=False,
        gridspec_kw={"height_ratios": [len(times) + 1 for times in results.values()]}, sharex=True,
    )  # fmt: skip
    for axis, (title, times) in zip(axes[:, 0], results.items()):
        base = next(iter(times.values())).cpu
        bars = axis.barh(
            list(times),
            [time.cpu / base for time in times.values()],
            color=["tab:blue" if "InternImage" in name else "lightgray" for name in times],
        )
        axis.axvline(1, color="gray", linewidth=0.8, zorder=0)
        labels = [f"{time.cpu / base:.2f}  ({1e3 * time.cpu:.0f} ms)" for time in times.values()]
        axis.bar_label(bars, labels, padding=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        axis.set_title(title, loc="left", fontsize=10)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.25)
    axes[-1, 0].set_xlabel("CPU time relative to ConvNeXt of the same size")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Measure, print Markdown, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES), help="sizes")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8], help="inference batch sizes")
    parser.add_argument("--train-batch", nargs="*", type=int, default=[2], help="training batch sizes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also ConvNeXt and InternImage through torch.compile(fullgraph=True); takes minutes",
    )
    parser.add_argument("--same-products", action="store_true", help="also ConvNeXt and Swin with our linear layers")
    parser.add_argument("--png", type=Path, help="PNG file to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {threads}, {args.repeats} repeats, {IMAGE}x{IMAGE}\n")
    results = {}
    for size in args.models:
        for batch in args.batch:
            title = f"{size.upper()}, inference, batch {batch}, {threads}"
            results[title] = time_inference(size, batch, args.repeats, args.compile, args.same_products)
            print(table(title, results[title]), flush=True)
        for batch in args.train_batch:
            title = f"{size.upper()}, training step, batch {batch}, {threads}"
            results[title], kept = time_training(size, batch, args.repeats, args.same_products)
            print(table(title, results[title], kept), flush=True)
    if args.png and results:
        plot(results, args.png)


if __name__ == "__main__":
    main()
