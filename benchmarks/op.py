"""Time of the DCNv3 operator on the CPU, forward and backward, at the stages of InternImage T, B and H.

Compared in turn, repeat by repeat, so that a busy machine hurts all alike: the compiled kernels, the pure-PyTorch
grid_sample core, torchvision's deform_conv2d with an all-ones depthwise weight (the same mathematics), and a floor.
The floor counts only what cannot be avoided: one load and one multiply-add for each of 36 corners per output element,
at the rate of multiply-adds that a large matrix product reaches here; twice that in backward, where each corner is also
read, changed and written.

    python benchmarks/op.py --models T --batches 1 --png op.png
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torchvision.ops import deform_conv2d  # noqa: E402

from ops_dcnv3 import backends, dcnv3  # noqa: E402
from ops_dcnv3.reference import Geometry, grid_sample_core  # noqa: E402

__all__ = ["MODELS", "Row", "as_torchvision", "measure", "scaling", "table"]

# Channels of the first stage and channels per group; each stage halves the size and doubles the channels.
MODELS = {"T": (64, 16), "B": (112, 16), "H": (320, 32)}
METHODS = ("kernels", "pytorch", "torchvision")


class Row(NamedTuple):
    """Median CPU and wall milliseconds by method of one direction at one shape, and the floor in CPU milliseconds."""

    model: str
    shape: tuple[int, int, int, int]
    direction: str
    cpu: dict[str, float]
    wall: dict[str, float]
    floor: float


def _interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> tuple[dict, dict]:
    """Median CPU and wall milliseconds of each function, called in turn."""
    loops = {}
    for name, function in functions.items():
        function()
        start = time.process_time()
        function()
        loops[name] = max(1, int(0.01 / max(time.process_time() - start, 1e-5)))
    cpu = {name: [] for name in functions}
    wall = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for _ in range(loops[name]):
                function()
            cpu[name].append((time.process_time() - cpu_start) / loops[name])
            wall[name].append((time.perf_counter() - wall_start) / loops[name])
    return tuple({name: 1e3 * statistics.median(times) for name, times in t.items()} for t in (cpu, wall))


def _inputs(batch: int, size: int, groups: int, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    mask = draw(batch, size, size, groups, 9).softmax(-1).flatten(3)
    channels = groups * depth
    return (
        draw(batch, size, size, channels),
        draw(batch, size, size, groups * 18),
        mask,
        draw(batch, size, size, channels),
    )


def as_torchvision(input: Tensor, offset: Tensor, mask: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Channels first, offsets as (y, x), points row by row: what deform_conv2d expects."""
    batch, height, width, channels = input.shape
    points = (batch, height, width, groups, 3, 3)  # columns, rows
    offset = offset.view(*points, 2).flip(-1).transpose(4, 5).flatten(3).permute(0, 3, 1, 2)
    mask = mask.view(points).transpose(4, 5).flatten(3).permute(0, 3, 1, 2)
    tensors = input.permute(0, 3, 1, 2), offset, input.new_ones(channels, 1, 3, 3), mask
    return tuple(tensor.contiguous() for tensor in tensors)


def multiply_adds_per_ms() -> float:
    """Rate of a one-thread float32 matrix product, the best of several."""
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(8):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return size**3 / best / 1e3


def measure(models: list[str], batches: list[int], repeats: int) -> list[Row]:
    """Time both directions at all four stages."""
    rate = multiply_adds_per_ms()
    rows = []
    for model in models:
        channels, depth = MODELS[model]
        for stage in range(4):
            size, groups = 56 >> stage, (channels << stage) // depth
            for batch in batches:
                rows += _measure_shape(model, batch, size, groups, depth, repeats, rate)
    return rows


def _measure_shape(model: str, batch: int, size: int, groups: int, depth: int, repeats: int, rate: float) -> list[Row]:
    input, offset, mask, grad = _inputs(batch, size, groups, depth)
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, groups, 1.0, False, False)
    vision = as_torchvision(input, offset, mask, groups)
    forward = {
        "kernels": lambda: dcnv3(input, offset, mask, groups=groups),
        "pytorch": lambda: grid_sample_core(input, offset, mask, geometry),
        "torchvision": lambda: deform_conv2d(vision[0], vision[1], vision[2], padding=1, mask=vision[3]),
    }
    expected = forward["kernels"]()
    torch.testing.assert_close(forward["pytorch"](), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(forward["torchvision"]().permute(0, 2, 3, 1), expected, rtol=1e-3, atol=1e-3)

    leaves = [tensor.detach().requires_grad_() for tensor in (input, offset, mask)]
    vision_leaves = [vision[0].detach().requires_grad_(), vision[1].detach().requires_grad_(), vision[2],
                     vision[3].detach().requires_grad_()]  # fmt: skip
    pytorch_output = grid_sample_core(*leaves, geometry)
    vision_output = deform_conv2d(*vision_leaves[:3], padding=1, mask=vision_leaves[3])
    vision_grad = grad.permute(0, 3, 1, 2).contiguous()
    vision_inputs = [vision_leaves[0], vision_leaves[1], vision_leaves[3]]
    backward = {
        "kernels": lambda: torch.ops.ops_dcnv3.backward(grad, input, offset, mask, *geometry),
        "pytorch": lambda: torch.autograd.grad(pytorch_output, leaves, grad, retain_graph=True),
        "torchvision": lambda: torch.autograd.grad(vision_output, vision_inputs, vision_grad, retain_graph=True),
    }
    with torch.no_grad():
        results = {"forward": _interleaved(forward, repeats), "backward": _interleaved(backward, repeats)}
    floor = 36 * input.numel() / rate
    return [
        Row(model, tuple(input.shape), direction, *results[direction], floor * (2 if direction == "backward" else 1))
        for direction in results
    ]


def scaling(repeats: int) -> float:
    """Wall time of one thread over that of two, forward, at 56x56x64, batch 8."""
    input, offset, mask, _ = _inputs(8, 56, 4, 16)
    geometry = Geometry(3, 3, 1, 1, 1, 1, 1, 1, 4, 1.0, False, False)

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        torch.ops.ops_dcnv3.forward(input, offset, mask, *geometry)

    wall = _interleaved({"1": lambda: run(1), "2": lambda: run(2)}, repeats)[1]
    torch.set_num_threads(1)
    return wall["1"] / wall["2"]


def table(rows: list[Row]) -> str:
    """Markdown: milliseconds of CPU time, and how many times the kernels' time the others and the floor are."""
    lines = [
        "| model | input | direction | kernels, ms (wall) | PyTorch core | torchvision | times the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = row.cpu["kernels"]
        shape = "x".join(map(str, row.shape))
        others = " | ".join(f"{row.cpu[name]:.2f} ({row.cpu[name] / own:.0f}x)" for name in METHODS[1:])
        lines.append(
            f"| {row.model} | {shape} | {row.direction} | {own:.3f} ({row.wall['kernels']:.3f}) | {others} "
            f"| {own / row.floor:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], path: str) -> None:
    """Draw CPU times on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(max(9, len(rows) * 0.7), 4), sharey=True)
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        chosen = [row for row in rows if row.direction == direction]
        for index, name in enumerate([*METHODS, "floor"]):
            times = [row.floor if name == "floor" else row.cpu[name] for row in chosen]
            axis.bar([x + 0.2 * index for x in range(len(chosen))], times, 0.2, label=name)
        labels = [f"{row.model} {'x'.join(map(str, row.shape))}" for row in chosen]
        axis.set_xticks([x + 0.3 for x in range(len(chosen))], labels, rotation=45, ha="right")
        axis.set_yscale("log")
        axis.set_title(direction)
    axes[0].set_ylabel("CPU time, ms, one thread")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--capability", choices=("portable", "avx2", "avx512"), help="instruction set of the kernels")
    parser.add_argument("--png", help="also draw a plot to this file")
    arguments = parser.parse_args()
    if reason := backends.load("cpu"):
        sys.exit(f"error: the CPU kernels cannot run: {reason}")
    if arguments.capability and not backends.set_cpu_capability(arguments.capability):
        sys.exit(f"error: this machine has no {arguments.capability}; choose another --capability")
    torch.set_num_threads(1)
    rows = measure(arguments.models, arguments.batches, arguments.repeats)
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {backends.cpu_capability()}, float32, one thread\n")
    print(table(rows))
    print(f"\nTwo threads at 8x56x56x64, forward: {scaling(arguments.repeats):.2f} times the speed of one (wall time).")
    if arguments.png:
        plot(rows, arguments.png)


if __name__ == "__main__":
    main()
