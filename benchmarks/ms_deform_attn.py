"""CPU time of multi-scale deformable attention: by the DCNv3 operator, and mmcv's form with grid_sample.

Shapes are those of DINO for one image of 800 x 1280: the encoder's 21260 queries, the decoder's 900; 8 heads of 32
channels, 4 levels, 4 points. Random points around random places. Compared in turn; the median of some repeats counts.

    OMP_NUM_THREADS=1 python benchmarks/ms_deform_attn.py
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from internimage.mm import mmcv_ext  # noqa: E402
from internimage.ms_deform_attn import ms_deform_attn  # noqa: E402

__all__ = ["measure"]

SHAPES = [(100, 160), (50, 80), (25, 40), (13, 20)]
HEADS, DEPTH, POINTS = 8, 32, 4


def _inputs(queries: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys = sum(height * width for height, width in SHAPES)
    place = torch.rand(1, queries, 1, 1, 1, 2, generator=generator)
    spread = torch.randn(1, queries, HEADS, len(SHAPES), POINTS, 2, generator=generator)
    weights = torch.rand(1, queries, HEADS, len(SHAPES) * POINTS, generator=generator).softmax(-1)
    value = torch.randn(1, keys, HEADS, DEPTH, generator=generator)
    return value, place + 0.03 * spread, weights.unflatten(-1, (len(SHAPES), POINTS))


def measure(queries: int, backward: bool, repeats: int) -> dict[str, float]:
    """Median CPU seconds of both forms."""
    mmcv_ext.install()
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = torch.tensor(SHAPES)
    value, locations, weights = (tensor.requires_grad_(backward) for tensor in _inputs(queries))

    def seconds(function: Callable[..., Tensor]) -> float:
        start = time.process_time()
        output = function(value, shapes, locations, weights)
        if backward:
            output.sum().backward()
        return time.process_time() - start

    forms = {"operator": ms_deform_attn, "grid_sample": multi_scale_deformable_attn_pytorch}
    times = {name: [] for name in forms}
    for _ in range(repeats + 1):
        for name, function in forms.items():
            times[name].append(seconds(function))
    return {name: statistics.median(found[1:]) for name, found in times.items()}  # the first warms up


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="CPU time of deformable attention.")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{'queries':>8} {'':18} {'operator':>10} {'grid_sample':>12} {'ratio':>6}")
    for queries in (21260, 900):
        for backward in (False, True):
            found = measure(queries, backward, repeats)
            what = "forward, backward" if backward else "forward"
            ratio = found["grid_sample"] / found["operator"]
            print(f"{queries:8} {what:18} {found['operator']:8.4f} s {found['grid_sample']:10.4f} s {ratio:6.1f}")


if __name__ == "__main__":
    main()
