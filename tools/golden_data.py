"""Regenerate the golden files of `tests/data` that this project can compute, and compare them with the stored ones.

    python tools/golden_data.py                    # compare only
    python tools/golden_data.py --output FOLDER    # write the files there as well

The stored files are outputs of the original project (OpenGVLab InternImage, MIT licence) and of FlashInternImage. What
this script computes comes from this project: use it to change the form of a file (another input size, more of a feature
map) while the values that both forms hold still agree, never to make a failing test pass. A file that differs by more
than `TOLERANCE` is not written.

These can be regenerated: `op_cases.npz` and `tiny_224`, `mini_l_64`, `mini_h_96`, `mini_flash_64.npz`.
`tests/internimage/tensorrt_api.py` regenerates `tensorrt_api.json` where TensorRT's Python libraries are installed. All
other files are facts about the original (recipes, state-dict keys, outputs of its heads) and have no source here;
`tests/data/README.md` lists them.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

import numpy as np
import torch

from golden import DATA, fill, golden_model, operator_case
from internimage import FlashInternImage, InternImage
from internimage.errors import UserError, exit_on_user_error
from ops_dcnv3 import dcnv3

__all__ = ["MODELS", "TOLERANCE", "largest_difference", "model_outputs", "operator_outputs"]

MODELS = ("tiny_224", "mini_l_64", "mini_h_96", "mini_flash_64")
TOLERANCE = 1e-4  # relative to the largest value of an array; the original's sampling grid is float32
VALUES = 4096  # stored of each feature map


def operator_outputs() -> dict[str, np.ndarray]:
    """Arrays of `op_cases.npz`: parameters as stored, outputs and gradients computed in float64, stored as float32."""
    stored = np.load(DATA / "op_cases.npz")
    arrays = {}
    for index in range(sum(name.endswith("_params") for name in stored)):
        case, g = operator_case(index), operator_case(index).geometry
        inputs = [tensor.clone().requires_grad_() for tensor in case.inputs]
        output = dcnv3(
            *inputs,
            kernel_size=(g.kernel_h, g.kernel_w),
            stride=(g.stride_h, g.stride_w),
            padding=(g.padding_h, g.padding_w),
            dilation=(g.dilation_h, g.dilation_w),
            groups=g.groups,
            offset_scale=g.offset_scale,
            remove_center=g.remove_center,
            backend="torch",
        )
        output.backward(case.grad_output)
        arrays[f"{index}_params"] = stored[f"{index}_params"]
        results = [output.detach(), *(tensor.grad for tensor in inputs)]
        for name, value in zip(("output", "grad_input", "grad_offset", "grad_mask"), results, strict=True):
            arrays[f"{index}_{name}"] = value.float().numpy().reshape(stored[f"{index}_{name}"].shape)
    return arrays


def model_outputs(name: str) -> dict[str, np.ndarray]:
    """Arrays of a golden model: logits, and of each level's feature map the shape, mean, deviation and first values."""
    golden = golden_model(name)
    model = fill((FlashInternImage if "flash" in name else InternImage)(**golden.kwargs))
    with torch.no_grad():
        arrays = {"logits": model(golden.input).numpy()}
        features = model.forward_intermediates(golden.input, intermediates_only=True)
    if "feature0_shape" in golden.outputs:
        for level, feature in enumerate(features):
            wide = feature.double()
            arrays[f"feature{level}_shape"] = np.array(feature.shape)
            arrays[f"feature{level}_mean"] = np.array(wide.mean().item())
            arrays[f"feature{level}_std"] = np.array(wide.std().item())
            arrays[f"feature{level}_head"] = feature.flatten()[:VALUES].numpy()
    return arrays


def largest_difference(name: str, arrays: dict[str, np.ndarray]) -> float:
    """The largest difference from the stored file, relative to the largest value of the array it is in.

    Raises `UserError` if the file has other arrays or shapes.
    """
    stored = np.load(DATA / f"{name}.npz")
    if {key: value.shape for key, value in stored.items()} != {key: value.shape for key, value in arrays.items()}:
        raise UserError(f"{name}.npz holds other arrays or shapes; compare the values that both have by hand")
    differences = [0.0]
    for key, value in arrays.items():
        expected = stored[key].astype(np.float64)
        # A mean near zero is compared with the spread of what it is the mean of.
        scale = np.abs(stored[key.replace("_mean", "_std")]).max()
        differences.append(float(np.abs(value - expected).max() / max(scale, 1e-12)))
    return max(differences)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the regenerated files (default: compare only)")
    args = parser.parse_args(argv)
    for name in ("op_cases", *MODELS):
        arrays = operator_outputs() if name == "op_cases" else model_outputs(name)
        difference = largest_difference(name, arrays)
        print(f"{name}.npz: largest relative difference {difference:.1e}")
        if difference > TOLERANCE:
            raise UserError(f"{name}.npz differs by more than {TOLERANCE:g}, so it is not written; find out why first")
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(args.output / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
