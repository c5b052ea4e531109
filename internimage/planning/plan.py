"""What each GPU holds, and sends, in a training step: by strategy, from the shapes of a model.

    python -m internimage memory internimage_g_22kto1k_512 --batch-size 4 --strategy fsdp --gpus 64

Formulas and assumptions: docs/scale.md.
"""

import heapq
import json
import re
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from internimage.errors import ArgumentParser, UserError
from internimage.variants import VARIANTS, create_model

from .trace import Sharding, block_of, trace_step

__all__ = ["STRATEGIES", "Plan", "main", "plan_memory"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MOMENTS = {"adamw": 2, "sgd": 1}  # float32 tensors that the optimizer keeps of every parameter
BUCKET = 500_000_000  # elements of the buffer that DeepSpeed reduces gradients in (its default)


class Strategy(NamedTuple):
    """What the processes share out, and which engine runs: DeepSpeed's keeps float32 weights in its optimizer."""

    optimizer: bool = False
    gradients: bool = False
    weights: bool = False
    deepspeed: bool = False
    offload: bool = False


STRATEGIES = {
    "ddp": Strategy(),
    "zero": Strategy(optimizer=True),
    "fsdp": Strategy(True, True, True),
    "fsdp_offload": Strategy(True, True, True, offload=True),
    "zero1": Strategy(True, deepspeed=True),
    "zero2": Strategy(True, True, deepspeed=True),
    "zero2_offload": Strategy(True, True, deepspeed=True, offload=True),
    "zero3": Strategy(True, True, True, deepspeed=True),
    "zero3_offload": Strategy(True, True, True, deepspeed=True, offload=True),
}


@dataclass
class Plan:
    """Bytes of one GPU, the one with most.

    Attributes:
        activations: what the forward pass saves for the backward pass.
        backward: what is alive, by kind, at that moment of forward and backward pass when it is most.
        update: the same while the optimizer updates the weights.
        host: in the memory of the machine, for each GPU.
        sent: by each GPU in a step, by collective; with offloading also what goes to the host and back.
    """

    model: str
    parameters: int
    size: int
    batch: int
    strategy: str
    gpus: int
    activations: int
    backward: dict[str, int]
    update: dict[str, int]
    host: dict[str, int]
    sent: dict[str, int]

    @property
    def peak(self) -> int:
        """The most bytes at any moment of a step."""
        return max(sum(self.backward.values()), sum(self.update.values()))

    def __str__(self) -> str:
        def row(name: str, *counts: int) -> str:
            return f"{name:32}" + "".join(f"{count / 2**30:16.3f}" for count in counts)

        moments = self.backward, self.update
        lines = [
            f"{self.model}: {self.parameters / 1e6:.1f} M parameters, {self.size}x{self.size} pixels",
            f"{self.strategy} on {self.gpus} GPUs, {self.batch} images each; the forward pass saves "
            f"{self.activations / 2**30:.3f} GiB",
            f"{'GiB on each GPU':32}{'backward pass':>16}{'update':>16}",
            *(row(name, *(moment.get(name, 0) for moment in moments)) for name in self.backward),
            row("total", *(sum(moment.values()) for moment in moments)),
        ]
        for title, counts in {"GiB on the host for each GPU": self.host, "GiB sent in a step": self.sent}.items():
            if counts:
                lines += [title, *(row(f"  {name}", count) for name, count in counts.items())]
        return "\n".join([*lines, f"peak: {self.peak / 2**30:.2f} GiB, without CUDA context, NCCL and fragmentation"])


def released_name(name: str) -> str:
    """A released name; `internimage_g_1k_512`, without the data set of pretraining, is `internimage_g_22kto1k_512`."""
    head, _, tail = name.rpartition("_1k_")
    longer = [known for known in VARIANTS if re.fullmatch(f"{re.escape(head)}_\\w+to1k_{re.escape(tail)}", known)]
    return longer[0] if name not in VARIANTS and len(longer) == 1 else name


def plan_memory(
    model: str | Callable[..., nn.Module],
    *,
    batch: int,
    strategy: str = "ddp",
    gpus: int = 1,
    size: int | None = None,
    amp: str = "bf16",
    optimizer: str = "adamw",
    ema: bool = False,
    use_checkpoint: bool = False,
    device: str = "cuda",
) -> Plan:
    """Plan a training step. Nothing is allocated; the time grows with the number of blocks (G: some seconds).

    Args:
        model: a released name, or a function of `with_cp` that makes a classifier.
        batch: images per GPU.
        strategy: one of `STRATEGIES`.
        gpus: number of GPUs, one process each.
        size: of the images, a multiple of 32; defaults to that of the name.
        amp: bf16, fp16 or fp32.
        optimizer: adamw or sgd (with momentum).
        ema: whether averaged weights are kept too.
        use_checkpoint: recompute every block in the backward pass.
        device: whose path to trace: `cuda`, or `cpu` to compare with a measurement there.

    Raises:
        UserError: an argument that is not one of these.
    """
    named = {"strategy": (strategy, STRATEGIES), "amp": (amp, DTYPES), "optimizer": (optimizer, MOMENTS)}
    for name, (value, known) in named.items():
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    label, build = "model", model
    if isinstance(model, str):
        label = released_name(model)
        build = partial(create_model, label)
        if size is None and label in VARIANTS:
            size = int(label.rsplit("_", 1)[1].split("to")[-1])
    size = 224 if size is None else size
    for name, value, multiple in (("batch", batch, 1), ("gpus", gpus, 1), ("size", size, 32)):
        if value < 1 or value % multiple:
            raise UserError(f"{name} must be a positive multiple of {multiple}; got {value}")

    kind, width = STRATEGIES[strategy], 4 if amp == "fp32" else 2
    reduced = width if kind.deepspeed else 4

    def shard(shape: torch.Size) -> int:
        return -(-shape.numel() // gpus) if kind.deepspeed else -(-shape[0] // gpus) * shape[1:].numel()

    options = (shard, kind.weights, 0 if kind.offload else reduced, reduced)
    try:
        trace = trace_step(
            partial(build, with_cp=use_checkpoint), batch, size,
            dtype=DTYPES[amp], autocast=not kind.deepspeed, casts_weights=kind.weights or kind.deepspeed,
            sharding=Sharding(*options) if kind.gradients else None, device=device,
        )  # fmt: skip
    except ValueError as error:  # of a layer, such as batch norm of a single number
        raise UserError(f"{label} cannot train on {batch} images of {size}x{size} pixels: {error}") from None
    shapes = trace.parameters
    count = sum(shape.numel() for shape in shapes.values())
    share = sum(map(shard, shapes.values()))
    if strategy == "zero":
        share = largest_share([shape.numel() for shape in shapes.values()], gpus)
    held = share if kind.weights else count
    states = {"weights": (width if kind.deepspeed else 4) * held + trace.buffers}
    states["optimizer"] = 4 * (MOMENTS[optimizer] + kind.deepspeed) * (share if kind.optimizer else count)
    if ema:
        states["averaged weights"] = 4 * (share if kind.weights or kind.deepspeed else count)
    gradients = reduced * (share if kind.gradients else count) + 4 * share * kind.deepspeed
    host = {}
    if kind.offload:
        names = [name for name in states if kind.weights or name != "weights"]
        host = {name: states[name] for name in names} | {"gradients": gradients}
        states, gradients = {name: states[name] for name in states if name not in names}, 0
    buffers = width * BUCKET if kind.deepspeed else 0 if kind.weights or gpus == 1 else 4 * count
    at_peak = trace.at_peak
    saved = min(trace.activations, at_peak["other"])
    backward = states | {
        "half-precision copies of weights": at_peak["copies"],
        "gathered weights": at_peak["gathered"],
        "gradients": at_peak["gradients"] + at_peak["shards"],
        "buffers of collectives": buffers + at_peak["reducing"],
        "activations": saved,
        "workspace": at_peak["other"] - saved,
    }
    update = states | {"gradients": gradients, "buffers of collectives": buffers}
    return Plan(
        label, count, size, batch, strategy, gpus, trace.activations,
        {name: value for name, value in backward.items() if value or update.get(name)},
        update, host, sent(kind, shapes, gpus, width, share),
    )  # fmt: skip


def largest_share(sizes: list[int], gpus: int) -> int:
    """Elements of the GPU with most, where each tensor goes whole to the one with fewest, the largest tensors first."""
    shares = [0] * gpus
    for size in sorted(sizes, reverse=True):
        heapq.heapreplace(shares, shares[0] + size)
    return max(shares)


def sent(kind: Strategy, shapes: dict[str, torch.Size], gpus: int, width: int, share: int) -> dict[str, int]:
    """Bytes that each GPU sends in a step, by collective, with the ring algorithms: (N - 1) / N of the tensor."""
    count = sum(shape.numel() for shape in shapes.values())
    in_blocks = sum(shape.numel() for name, shape in shapes.items() if block_of(name))
    reduced = width if kind.deepspeed else 4
    if not (kind.weights or kind.deepspeed):
        whole = {"all-reduce of gradients": 8 * count} | ({"broadcast of weights": 4 * count} if kind.optimizer else {})
    else:
        gathered = count if not kind.weights else 2 * count if kind.deepspeed else count + in_blocks
        whole = {"all-gather of weights": width * gathered, "reduce-scatter of gradients": reduced * count}
    result = {name: value * (gpus - 1) // gpus for name, value in whole.items()}
    if kind.offload:
        stored = width if kind.deepspeed else 4
        result["to the host and back"] = share * (reduced + stored * (2 if kind.weights else 1))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan of one training step."""
    parser = ArgumentParser("python -m internimage memory", description=main.__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", default=SUPPRESS, help="name of a released classifier: internimage models")
    which.add_argument("--model", dest="model", metavar="NAME", help="the same")
    parser.add_argument("--batch-size", "--batch", dest="batch", type=int, required=True, help="images per GPU")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs")
    parser.add_argument("--size", type=int, help="of the images, in pixels; defaults to that of the name")
    for name, known in {"strategy": STRATEGIES, "optimizer": MOMENTS, "amp": DTYPES}.items():
        parser.add_argument(f"--{name}", default=next(iter(known)), help=f"{', '.join(known)}; defaults to the first")
    parser.add_argument("--ema", action="store_true", help="keep averaged weights too")
    parser.add_argument("--use-checkpoint", action="store_true", help="recompute every block in the backward pass")
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")
    args = vars(parser.parse_args(argv))
    as_json = args.pop("json")
    plan = plan_memory(**args)
    print(json.dumps(asdict(plan) | {"peak": plan.peak}, indent=2) if as_json else plan)
