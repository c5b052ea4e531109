"""Phase `model`: whole networks, InternImage beside timm's ConvNeXt and Swin in the same modes, and T's kernels.

Inference is `model.to(bfloat16)`, float32 or TF32; training is bfloat16 autocast with a fused AdamW. Convolutional
networks are channels-last. Before it is timed, a network's output is compared with its own in float64 (InternImage:
through the pure-PyTorch operator), and InternImage's gradient in float32 as well.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops_dcnv3 import backends

from .journal import Journal
from .networks import MODELS, References, create, images_for, layout_of, relative_error, set_precision
from .plan import Deadline
from .timing import graph_times, summary, times

__all__ = ["Run", "run", "runs"]

# Largest relative error of the logits. On the CPU, T and ConvNeXt-T have 4e-7 in float32 and 7e-3 in bfloat16; cuDNN's
# float32 convolutions may be less exact than that, and TF32 has three bits more than bfloat16.
LIMITS = {"float32": 1e-4, "TF32": 1e-2, "bfloat16": 5e-2}


class Run(NamedTuple):
    """One row: `task` is inference, training or profile; `mode` is eager, graph or compiled."""

    model: str
    task: str
    precision: str
    batch: int
    mode: str = "eager"
    optimized: bool = False

    @property
    def name(self) -> str:
        optimized = " optimized" if self.optimized else ""
        return f"{self.model}{optimized} {self.task} {self.precision} N={self.batch} {self.mode}"

    @property
    def needs(self) -> float:
        """Seconds without which it is not begun."""
        if self.mode == "compiled":
            return 80.0 if self.task == "training" else 45.0
        return {"InternImage-L": 7.0, "InternImage-XL": 9.0}.get(self.model, 4.0)


def runs() -> Iterator[Run]:
    """All rows, the most valuable first; what compiles comes last."""
    bf16, autocast = "bfloat16", "bfloat16 autocast"
    trios = {size: (f"InternImage-{size}", f"ConvNeXt-{size}", f"Swin-{size}") for size in "TB"}
    yield Run("InternImage-T", "inference", bf16, 64, optimized=True)
    for model in trios["T"]:
        yield Run(model, "inference", bf16, 64)
    for model in trios["T"]:
        yield Run(model, "training", autocast, 64)
    for model in trios["T"][:2]:
        yield Run(model, "profile", bf16, 64)
        yield Run(model, "profile", autocast, 64)
    yield Run("InternImage-T", "inference", bf16, 1, "graph", optimized=True)
    for model in trios["T"]:
        yield Run(model, "inference", bf16, 1, "graph")
    yield Run("InternImage-T", "inference", bf16, 1, optimized=True)
    for model in trios["T"]:
        yield Run(model, "inference", bf16, 1)
    for model in trios["B"]:
        yield Run(model, "inference", bf16, 64)
    for model in trios["B"]:
        yield Run(model, "training", autocast, 64)
    for size in ("B", "L", "XL", "S"):
        yield Run(f"InternImage-{size}", "inference", bf16, 1, "graph", optimized=True)
    for precision in ("TF32", "float32"):
        for model in trios["T"]:
            yield Run(model, "inference", precision, 64)
    for model in trios["T"][:2]:
        yield Run(model, "inference", bf16, 64, "compiled")
    for model in trios["T"][:2]:
        yield Run(model, "training", autocast, 64, "compiled")
    for model in trios["T"]:
        yield Run(model, "inference", bf16, 128)
    for size in ("L", "XL"):
        yield Run(f"InternImage-{size}", "inference", bf16, 64)
    for model in trios["B"]:
        yield Run(model, "inference", bf16, 1, "graph")
        yield Run(model, "inference", bf16, 128)
    for precision in ("TF32", "float32"):
        for model in trios["T"]:
            yield Run(model, "inference", precision, 1, "graph")
            yield Run(model, "inference", precision, 128)
        for model in trios["B"]:
            yield Run(model, "inference", precision, 64)
    for size in ("L", "XL"):
        yield Run(f"InternImage-{size}", "inference", bf16, 1)
        yield Run(f"InternImage-{size}", "inference", "TF32", 64)
    for model in trios["T"][:2]:
        yield Run(model, "inference", bf16, 1, "compiled")


def _wall_times(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """From the call until its result is there: what one image costs in eager mode, where the host is the limit."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    for _ in range(3):
        call()
    while len(found) < 5 or (time.perf_counter() < end and len(found) < 100):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - start))
    return summary(found, "wall")


@torch.no_grad()
def _inference(run: Run, device: torch.device, references: References, row: dict) -> None:
    images, expected = references(run.model)
    set_precision(run.precision)
    network, x = _ready(run, device)
    call = torch.compile(network) if run.mode == "compiled" else network
    like = next(network.parameters()).dtype
    small = images.to(dtype=like, memory_format=layout_of(run.model))
    row["error_of_logits"] = relative_error(network(small), expected)
    if run.mode == "compiled":
        start = time.time()
        result = call(x)
        row["compile_seconds"] = round(time.time() - start, 1)
        row["error_of_compiled"] = relative_error(result[:8], network(x)[:8])
    for key in ("error_of_logits", "error_of_compiled"):
        if key in row and not row[key] <= LIMITS[run.precision]:
            raise ArithmeticError(f"{key} is {row[key]:.1e}, the limit {LIMITS[run.precision]:g}")
    if device.type != "cuda":
        row["time"] = times([lambda: call(x)], device, seconds=0.1)
    elif run.mode == "graph":
        row["time"] = graph_times([lambda: call(x)], 0.3)
    elif run.batch == 1:
        row["time"] = _wall_times(lambda: call(x), 0.5)
    else:
        row["time"] = times([lambda: call(x)] * 3, device, seconds=0.5)


def _ready(run: Run, device: torch.device) -> tuple[nn.Module, Tensor]:
    """Network and images in the precision and the layout of the run."""
    network = create(run.model, device).eval()
    if run.optimized:
        network = network.optimize_for_inference()
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    layout = layout_of(run.model)
    network = network.to(dtype=dtype, memory_format=layout)
    return network, images_for(run.model, run.batch, device).to(dtype=dtype, memory_format=layout)


def _training_step(run: Run, device: torch.device) -> tuple[nn.Module, Callable[[], Tensor]]:
    set_precision(run.precision)
    layout = layout_of(run.model)
    network = create(run.model, device).train().to(memory_format=layout)
    x = images_for(run.model, run.batch, device).to(memory_format=layout)
    labels = torch.randint(1000, (run.batch,), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    call = torch.compile(network) if run.mode == "compiled" else network

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(call(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    return network, step


def _training(run: Run, device: torch.device, references: References, row: dict) -> None:
    if run.model.startswith("InternImage") and run.mode == "eager":
        set_precision("float32")
        row["error_of_gradient"] = references.gradient_error(run.model)
        # 7e-6 on the CPU. More is due where rounding moves a sampling point across a pixel: there the gradient jumps.
        if not row["error_of_gradient"] <= 1e-2:
            raise ArithmeticError(f"the gradient in float32 has a relative error of {row['error_of_gradient']:.1e}")
    network, step = _training_step(run, device)
    start = time.time()
    row["first_loss"] = step().item()
    row["first_step_seconds"] = round(time.time() - start, 1)
    broken = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if broken or not math.isfinite(row["first_loss"]):
        raise ArithmeticError(f"loss {row['first_loss']}; gradients that are not finite: {broken[:5]}")
    if device.type == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
    row["time"] = times([step], device, seconds=1.0 if device.type == "cuda" else 0.1)
    row["last_loss"] = step().item()
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()


def _profile(run: Run, device: torch.device, row: dict) -> None:
    """The 25 kernels with the most time of one forward pass (bfloat16) or one training step (autocast)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.set_grad_enabled("autocast" in run.precision):
        if "autocast" in run.precision:
            _, call = _training_step(run, device)
        else:
            set_precision(run.precision)
            network, x = _ready(run, device)
            call = lambda: network(x)  # noqa: E731
        for _ in range(3):
            call()
        _wait(device)
        with torch.profiler.profile(activities=activities) as profiler:
            call()
            _wait(device)
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    kernels = [
        {
            "name": event.key[:160],
            "count": event.count,
            "us": event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
        if event.device_type == kind and not event.is_user_annotation  # such as the optimizer's step as a whole
    ]
    kernels.sort(key=lambda kernel: -kernel["us"])
    row.update(kernels=kernels[:25], launches=sum(k["count"] for k in kernels), total_us=sum(k["us"] for k in kernels))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def run(journal: Journal, deadline: Deadline, device: torch.device, chosen: list[Run] | None = None) -> None:
    """Measure all rows in order until the deadline.

    Raises:
        journal.LostDevice: see there.
        ops_dcnv3.BackendError: the compiled kernels cannot run on the device.
    """
    backends.select("cuda" if device.type == "cuda" else "cpu", device)
    references = References(device)
    for item in runs() if chosen is None else chosen:
        with journal.row(item.name, deadline, item.needs) as row:
            if row is None:
                continue
            row.update(item._asdict(), image=MODELS[item.model][1])
            try:
                if item.task == "inference":
                    _inference(item, device, references, row)
                elif item.task == "training":
                    _training(item, device, references, row)
                else:
                    _profile(item, device, row)
            except ArithmeticError as error:
                row.update(status="wrong", error=str(error))
        if item.mode == "compiled":
            torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
