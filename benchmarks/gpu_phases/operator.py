"""Phase `operator`: the DCNv3 operator alone, compared with float64 first and timed afterwards.

Forward and backward of the CUDA kernels beside the Triton kernel, torchvision's deform_conv2d with an all-ones
depthwise weight, the grid_sample core and the compiled gather core. Backward of the kernels is the raw operator, with
the zeroing and the narrowing that belong to it; that of the others is autograd's. Every result that is timed was
compared with the gather core in float64 on fresh random inputs; a kernel that computes something else is not timed.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ops_dcnv3.functional  # noqa: F401 - defines the operators
from op import MODELS, as_torchvision
from ops_dcnv3 import backends
from ops_dcnv3.reference import Geometry, gather_core, grid_sample_core, sampling_locations

from .journal import Journal
from .plan import Deadline
from .timing import times

__all__ = ["LIMITS", "Case", "Wrong", "bytes_moved", "cases", "errors", "make_inputs", "run"]

# Largest ‖result - reference‖ / ‖reference‖ of a kernel. Measured with the CPU kernels: 1e-7 in float32; 2.1e-4
# (float16) and 1.7e-3 (bfloat16) from rounding the results alone, which blending in a half type about doubles.
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# The others have to compute the same function, no more: torchvision has half coordinates for half types.
_YARDSTICK_LIMIT = 0.1
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
OWN = ("kernel", "triton")


class Wrong(Exception):
    """A result that is not the operator's."""


class Case(NamedTuple):
    """One shape with its inputs: `spread` is the standard deviation of the offsets in pixels."""

    model: str
    stage: int
    batch: int
    dtype: str
    spread: float = 1.0
    logits: bool = True
    method: str = "kernel"

    @property
    def name(self) -> str:
        mask = "logits" if self.logits else "weights"
        return f"{self.model}{self.stage} N={self.batch} {self.dtype} offsets {self.spread:g} {mask} {self.method}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pixels per side, groups, channels per group."""
        channels, depth = MODELS[self.model]
        return 56 >> (self.stage - 1), (channels << (self.stage - 1)) // depth, depth


def cases() -> list[Case]:
    """All cases, the most valuable first, for a deadline may end the list anywhere."""
    return list(dict.fromkeys(_cases()))


def _cases() -> Iterator[Case]:
    shapes = [("T", 1), ("T", 2), ("T", 3), ("T", 4), ("B", 1), ("H", 1)]
    for dtype in ("float16", "bfloat16"):
        for batch in (64, 1):
            for shape in shapes:
                yield Case(*shape, batch, dtype)
    for batch in (64, 1):
        yield Case("T", 1, batch, "float32")
    for dtype in ("float16", "bfloat16", "float32"):
        yield Case("T", 1, 64, dtype, logits=False)
        for spread in (0.0, 2.0):
            yield Case("T", 1, 64, dtype, spread)
    for method in ("triton", "torchvision", "grid_sample"):
        yield Case("T", 1, 64, "float16", method=method)
    for method, batches in (("triton", (64, 1)), ("torchvision", (64, 1)), ("grid_sample", (64, 1))):
        for batch in batches:
            for shape in shapes:
                yield Case(*shape, batch, "float16", method=method)
    yield Case("T", 1, 64, "float16", method="compiled gather")
    for method in ("triton", "torchvision", "grid_sample"):
        yield Case("T", 1, 64, "float32", method=method)
        yield Case("T", 1, 64, "float16", 0.0, method=method)
        yield Case("T", 1, 64, "float16", 2.0, method=method)
    yield Case("T", 1, 1, "float16", method="compiled gather")
    for shape in (("B", 1), ("H", 1), ("T", 2), ("T", 3), ("T", 4)):
        for batch in (64, 1):
            yield Case(*shape, batch, "float32")


class Inputs(NamedTuple):
    """Tensors of one call, and the gradient of its output."""

    input: Tensor
    offset: Tensor
    mask: Tensor
    grad_output: Tensor


def geometry_of(case: Case) -> Geometry:
    return Geometry(3, 3, 1, 1, 1, 1, 1, 1, case.shape[1], 1.0, False, case.logits)


def make_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Random inputs in the case's type."""
    size, groups, depth = case.shape
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda *tail: torch.randn(case.batch, size, size, *tail, generator=generator, device=device)  # noqa: E731
    mask = draw(groups, 9)
    mask = (mask if case.logits else mask.softmax(-1)).flatten(3)
    tensors = draw(groups * depth), draw(groups * 18) * case.spread, mask, draw(groups * depth)
    return Inputs(*(tensor.to(TYPES[case.dtype]) for tensor in tensors))


def bytes_moved(case: Case) -> dict[str, int]:
    """The least that each direction reads and writes: every input and every result once."""
    size, groups, depth = case.shape
    pixels = case.batch * size * size
    features, points = pixels * groups * depth, pixels * groups * 27
    item = TYPES[case.dtype].itemsize
    return {"forward": (2 * features + points) * item, "backward": (3 * features + 2 * points) * item}


def _forward(case: Case, inputs: Inputs, compiled: Callable) -> Callable[[], Tensor]:
    geometry = geometry_of(case)
    input, offset, mask, _ = inputs
    if case.method == "kernel":
        return lambda: torch.ops.ops_dcnv3.forward(input, offset, mask, *geometry)
    if case.method == "triton":
        import ops_dcnv3.triton  # noqa: F401 - defines the operator

        return lambda: torch.ops.ops_dcnv3.triton_forward(input, offset, mask, *geometry)
    if case.method == "torchvision":
        from torchvision.ops import deform_conv2d

        # Its mask holds weights: the softmax, if any, is not in its time.
        mask = mask.unflatten(-1, (-1, 9)).softmax(-1).flatten(3) if case.logits else mask
        x, o, weight, m = as_torchvision(input, offset, mask, geometry.groups)
        return lambda: deform_conv2d(x, o, weight, padding=1, mask=m).permute(0, 2, 3, 1)
    core = grid_sample_core if case.method == "grid_sample" else compiled
    return lambda: core(input, offset, mask, geometry)


def _backward(case: Case, inputs: Inputs, compiled: Callable) -> Callable[[], tuple[Tensor, ...]] | None:
    geometry = geometry_of(case)
    if case.method == "kernel":
        *tensors, grad = inputs
        return lambda: torch.ops.ops_dcnv3.backward(grad, *tensors, *geometry)
    if case.method == "triton":
        return None  # the grid_sample core's
    if case.method == "torchvision":
        from torchvision.ops import deform_conv2d

        mask = inputs.mask.unflatten(-1, (-1, 9)).softmax(-1).flatten(3) if case.logits else inputs.mask
        x, o, weight, m = as_torchvision(inputs.input, inputs.offset, mask, geometry.groups)
        leaves = [tensor.detach().requires_grad_() for tensor in (x, o, m)]
        grad = inputs.grad_output.permute(0, 3, 1, 2).contiguous()
        with torch.enable_grad():
            output = deform_conv2d(leaves[0], leaves[1], weight, padding=1, mask=leaves[2])
    else:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
        grad = inputs.grad_output
        with torch.enable_grad():
            output = (grid_sample_core if case.method == "grid_sample" else compiled)(*leaves, geometry)
    return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)


def errors(case: Case, inputs: Inputs, forward: Callable, backward: Callable | None) -> dict[str, float]:
    """Relative errors of output and gradients against float64, on the first, middle and last image.

    Memory that freed results may be given again is filled with NaN before. Of the offsets' gradient, which jumps where
    a coordinate is whole, points are left out that rounding may put on the other side, and those at exactly -1, the
    height or the width, where the one-sided derivatives of kernels and definition differ.
    """
    geometry = geometry_of(case)
    images = sorted({0, case.batch // 2, case.batch - 1})
    leaves = [tensor[images].double().requires_grad_() for tensor in inputs[:3]]
    with torch.enable_grad():
        expected = gather_core(*leaves, geometry)
        expected_grads = torch.autograd.grad(expected, leaves, inputs.grad_output[images].double())
    found = {"output": _relative(_poisoned(forward)[images], expected.detach())}
    if backward is not None and case.method == "kernel":
        grads = [grad[images] for grad in _poisoned(backward)]
        x, y = sampling_locations(leaves[1].detach(), geometry)
        kept = torch.stack([_is_smooth(x, case.shape[0]) & _is_smooth(y, case.shape[0])] * 2, -1)
        kept = kept.reshape(expected_grads[1].shape)
        pairs = zip(("grad_input", "grad_offset", "grad_mask"), grads, expected_grads)
        for name, grad, wanted in pairs:
            if name == "grad_offset":
                # Points left out may be wrong, but not unwritten.
                grad = torch.where(kept | ~grad.isfinite(), grad, 0)
                wanted = torch.where(kept, wanted, 0)
            found[name] = _relative(grad, wanted)
    return found


def _is_smooth(coordinate: Tensor, size: int) -> Tensor:
    distance = (coordinate - coordinate.round()).abs()
    return ((distance == 0) | (distance > 1e-4)) & (coordinate != -1) & (coordinate != size)


def _poisoned(call: Callable[[], Any]) -> Any:
    results = call()
    for tensor in (results,) if isinstance(results, Tensor) else results:
        tensor.fill_(math.nan)
    del results
    return call()


def _relative(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm())


def _check(case: Case, found: dict[str, float]) -> None:
    limit = LIMITS[TYPES[case.dtype]] if case.method in OWN else _YARDSTICK_LIMIT
    if wrong := [f"{name} {error:.1e}" for name, error in found.items() if not error <= limit]:
        raise Wrong(f"relative errors against float64: {', '.join(wrong)}; the limit is {limit:g}")


def measure(case: Case, device: torch.device, seed: int, compiled: Callable, row: dict) -> None:
    """Check the case, then time both directions; `row` receives the results."""
    moved = bytes_moved(case)
    size, groups, depth = case.shape
    row.update(case._asdict(), shape=[case.batch, size, size, groups * depth], depth=depth, seed=seed, bytes=moved)
    first = make_inputs(case, device, seed)
    row["errors"] = errors(case, first, _forward(case, first, compiled), _backward(case, first, compiled))
    try:
        _check(case, row["errors"])
    except Wrong as error:
        row.update(status="wrong", error=str(error))
        return
    del first
    sets = 1
    if case.batch > 1 and device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        sets = min(1 + math.ceil(2 * cache / moved["forward"]), 24 if case.method in OWN else 2)
    rotation = [make_inputs(case, device, seed + 1 + index) for index in range(sets)]
    # One image is a matter of microseconds: several calls in one graph, whose inputs then lie in the cache as they do
    # in a network, where the layer before wrote them.
    again = 16 if case.batch == 1 and case.method in OWN else 1
    graph = case.method in OWN or case.batch == 1
    for direction, make in (("forward", _forward), ("backward", _backward)):
        calls = [make(case, inputs, compiled) for inputs in rotation] * again
        if calls[0] is not None:
            graphed = graph and (direction == "forward" or case.method == "kernel")
            row[direction] = times(calls, device, graph=graphed, seconds=0.05)
            row[direction]["sets"] = sets
        del calls


@torch.no_grad()
def run(journal: Journal, deadline: Deadline, device: torch.device, chosen: list[Case] | None = None) -> None:
    """Measure all cases in order until the deadline.

    Raises:
        journal.LostDevice: see there; a new process goes on behind the row at fault.
        ops_dcnv3.BackendError: the compiled kernels cannot run on the device.
    """
    backends.select("cuda" if device.type == "cuda" else "cpu", device)
    compiled = torch.compile(gather_core, dynamic=False)
    seed = journal.data.setdefault("seed", torch.seed() % 2**31)
    for index, case in enumerate(cases() if chosen is None else chosen):
        needs = 25.0 if case.method == "compiled gather" else 1.5
        with journal.row(case.name, deadline, needs) as row:
            if row is not None:
                measure(case, device, seed + 100 * index, compiled, row)
        if device.type == "cuda" and index % 8 == 7:
            torch.cuda.empty_cache()
