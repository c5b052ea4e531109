r"""Write the outputs of named layers of a model for some images to a file.

    python classification/extract_feature.py --model internimage_t_1k_224 --list-layers
    python classification/extract_feature.py --cfg F.yaml --checkpoint C.pth images \
        --layers patch_embed levels.3 conv_head --output features.npz

The file (.npz, .pt or .safetensors) maps each layer's name to one array; its first dimension is the images. The
paths of the images are in `image_names` (in .safetensors: in the metadata, as JSON).
"""

import difflib
import json
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from classification.inference import Classifier, add_model_arguments, list_images, load_classifier, read_image
from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.files import atomic_path, check_writable

__all__ = ["extract_features", "find_layers", "write_features"]

SUFFIXES = (".npz", ".pt", ".safetensors")


def find_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules with these names. Raises `UserError` with similar names for a name that does not exist."""
    modules = {name: module for name, module in model.named_modules() if name}
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "--list-layers prints all names"
            raise UserError(f"the model has no layer {name!r}; {hint}")
    return {name: modules[name] for name in names}


def extract_features(
    classifier: Classifier, paths: Sequence[Path], layers: Sequence[str], batch_size: int = 8
) -> dict[str, Tensor]:
    """Outputs of the layers for the images, in the layers' own layout (blocks: `(N, H, W, C)`), on the CPU.

    Raises:
        UserError: an image that cannot be read, a layer that does not exist or that the model does not run.
    """
    parts: dict[str, list[Tensor]] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            parts.setdefault(name, []).append(output.detach().cpu())

    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: keep(name, output))
        for name, module in find_layers(classifier.model, layers).items()
    ]
    try:
        for start in tqdm(range(0, len(paths), batch_size), unit="batch", disable=None):
            images = [classifier.transform(read_image(path)) for path in paths[start : start + batch_size]]
            classifier.logits(torch.stack(images))
    finally:
        for hook in hooks:
            hook.remove()
    if unused := [name for name in layers if name not in parts]:
        raise UserError(
            f"layer {unused[0]!r} has no output tensor: the model does not call it; choose one inside or around it"
        )
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def write_features(path: Path, features: dict[str, Tensor], image_names: Sequence[str]) -> None:
    """Write the features and the names of their images in the format given by the suffix of `path`.

    Raises:
        UserError: the file cannot be written; an existing file is unchanged.
    """
    names = list(image_names)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            contiguous = {name: value.contiguous() for name, value in features.items()}
            try:
                save_file(contiguous, temporary, metadata={"image_names": json.dumps(names)})
            except SafetensorError as error:
                raise OSError(str(error)) from None
            return
        with open(temporary, "wb") as file:
            if path.suffix == ".pt":
                torch.save({**features, "image_names": names}, file)
            else:
                np.savez(file, **{name: value.numpy() for name, value in features.items()}, image_names=names)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("images", nargs="*", type=Path, default=SUPPRESS, help="image files, or folders of images")
    source.add_argument("--images", "--image", "--folder", type=Path, nargs="+", default=[], help="the same")
    parser.add_argument("--layers", metavar="NAME", nargs="+", help="names of layers (see --list-layers)")
    parser.add_argument("--list-layers", action="store_true", help="print the names of all layers and exit")
    parser.add_argument("--output", metavar="FILE", type=Path, help=f"one of {', '.join('*' + s for s in SUFFIXES)}")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(argv)

    if args.list_layers:
        for name, module in load_classifier(args, weights=False).model.named_modules():
            if name:
                print(f"{name}  {type(module).__name__}")
        return
    if not (args.layers and args.output and args.images):
        raise UserError("give IMAGES, --layers and --output; or --list-layers")
    if args.output.suffix not in SUFFIXES:
        raise UserError(f"--output {args.output} must end in {', '.join(SUFFIXES)}")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}, expected at least 1")
    check_writable(args.output)
    paths = [path for item in args.images for path in (list_images(item) if item.is_dir() else [item])]
    classifier = load_classifier(args)
    features = extract_features(classifier, paths, args.layers, args.batch_size)
    write_features(args.output, features, [str(path) for path in paths])
    for name, value in features.items():
        print(f"{name}: {tuple(value.shape)}")
    print(f"wrote {args.output}: {len(paths)} images")


if __name__ == "__main__":
    main()
