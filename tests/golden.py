"""Reference data: how weights and inputs are made, and the stored outputs of the original project in `tests/data`.

Weights and inputs come from seeded generators, so that two implementations get the same ones without exchanging files.
"""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ops_dcnv3.reference import Geometry

DATA = Path(__file__).parent / "data"


def image(*shape: int, seed: int) -> Tensor:
    """Standard-normal float32 tensor from its own generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights for `{key: shape}`, each tensor seeded by the CRC-32 of its key."""
    state = {}
    for key, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        elif len(shape) > 1:
            state[key] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        else:
            noise = 0.1 * torch.randn(shape, generator=generator)
            state[key] = 1 + noise if key.endswith("weight") or "gamma" in key else noise
    return state


def fill(model: nn.Module) -> nn.Module:
    """Load the deterministic weights into `model` and return it in evaluation mode."""
    model.load_state_dict(filled({key: list(value.shape) for key, value in model.state_dict().items()}))
    return model.eval()


class OperatorCase(NamedTuple):
    """One case of the operator: inputs in float64 and the original's results in float32."""

    geometry: Geometry
    inputs: tuple[Tensor, Tensor, Tensor]
    grad_output: Tensor
    output: Tensor
    grads: tuple[Tensor, Tensor, Tensor]


def operator_case(index: int) -> OperatorCase:
    """Case `index` (0 to 5) of the six stored ones."""
    stored = np.load(DATA / "op_cases.npz")
    params = stored[f"{index}_params"]
    batch, height, width, groups, depth, kernel, stride, padding, dilation = (int(value) for value in params[:9])
    geometry = Geometry(
        *(kernel, kernel, stride, stride, padding, padding, dilation, dilation, groups),
        *(float(params[9]), bool(params[10]), False),
    )
    out = geometry.output_size(height, width)
    inputs = (
        image(batch, height, width, groups * depth, seed=100 + index).double(),
        2 * image(batch, *out, groups * geometry.points * 2, seed=200 + index).double(),
        image(batch, *out, groups, geometry.points, seed=300 + index).double().softmax(-1).flatten(3),
    )
    results = [
        torch.from_numpy(stored[f"{index}_{name}"]) for name in ("output", "grad_input", "grad_offset", "grad_mask")
    ]
    grads = tuple(grad.reshape(tensor.shape) for grad, tensor in zip(results[1:], inputs, strict=True))
    grad_output = image(batch, *out, groups * depth, seed=400 + index).double()
    return OperatorCase(geometry, inputs, grad_output, results[0], grads)


class GoldenModel(NamedTuple):
    """A small model of the original project: how to build and feed it, its keys, and its stored outputs."""

    kwargs: dict
    input: Tensor
    keys: dict[str, list[int]]
    outputs: dict[str, np.ndarray]


def golden_model(name: str) -> GoldenModel:
    """`tiny_224`, `mini_l_64`, `mini_h_96` or `mini_flash_64`."""
    with gzip.open(DATA / "golden_models.json.gz") as file:
        spec = json.load(file)[name]
    outputs = dict(np.load(DATA / f"{name}.npz"))
    return GoldenModel(spec["kwargs"], image(*spec["input_shape"], seed=spec["input_seed"]), spec["keys"], outputs)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest absolute expected value."""
    expected = expected.double()
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()
