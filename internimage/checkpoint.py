"""Read and write checkpoints in every known layout.

Layouts: the released classification files (a training state with a yacs config), mm files (`state_dict`, keys under
`backbone.`, heads of mmdet 2 and mmseg 0: `layouts`), DeepSpeed files (`module`), the Hugging Face models (`model.`
prefix, `layer_scale1`), safetensors, and plain state dicts. Files are always read with `weights_only=True`, and their
checksums are verified (`integrity`).
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from . import checkpoint_types  # noqa: F401 - extends what torch.load may read
from .errors import CheckpointError
from .files import atomic_path
from .imagenet import in22k_to_1k
from .integrity import verify_archive
from .layouts import from_mask2former, from_mmdet2_dino

__all__ = [
    "extract_state_dict",
    "fit_pretrained",
    "install_layout_hook",
    "load_exact",
    "load_file",
    "load_pretrained",
    "naming",
    "read_state_dict",
    "save_atomic",
    "to_current",
]

StateDict = dict[str, Tensor]

_CONTAINERS = ("model", "state_dict", "module")
# Everything of a classifier that a bare backbone does not have.
_HEAD_PREFIXES = ("head.", "conv_head.", "dcnv3_head_x3.", "dcnv3_head_x4.", "clip_projector.", "fc_norm.", "meta")


# Files


# torch's messages about objects that its unpickler does not load.
_UNSAFE = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]*\w)|((?:Can only|Trying to call) [^\n]*)")


def load_file(path: str | Path) -> object:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file, or a folder of (sharded) safetensors, onto the CPU.

    The checksums in the file are verified, once per process.

    Raises:
        CheckpointError: a missing, truncated or damaged file, not a checkpoint, or one with arbitrary Python objects.
    """
    path = Path(path)
    if path.is_dir() and (shards := sorted(path.glob("*.safetensors"))):
        return {key: value for shard in shards for key, value in load_file(shard).items()}
    if (path / ".metadata").is_file():
        raise CheckpointError(f"{path} is a sharded checkpoint; make it one file with tools/dcp_to_pth.py")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .pth, .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        if archive := zipfile.is_zipfile(path):
            verify_archive(path)
        # Memory mapping halves the memory needed for the 12 GB of InternImage-G.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # torch, pickle, zipfile and safetensors raise many types
        reason = f"{type(error).__name__}: {error}"
        if unsafe := _UNSAFE.search(reason):
            raise CheckpointError(
                f"{path} holds Python objects that are not loaded for safety ({unsafe[1] or unsafe[2]}); save only its "
                "weights with torch.save(model.state_dict(), ...) on the machine where it was made"
            ) from error
        first_sentence = re.split(r"[.] |\n", reason)[0]
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is truncated or another kind of file ({first_sentence}); "
            "download or save it again"
        ) from error


def save_atomic(obj: object, path: str | Path) -> None:
    """`torch.save`, atomically: `path` has either its old content or the complete new one (`files.atomic_path`)."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(obj, file)


# Layouts. Each function converts one layout to the current one and leaves other layouts unchanged.


def _strip(state: StateDict, prefix: str) -> StateDict:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _from_wrappers(state: StateDict) -> StateDict:
    """DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`), nested in any order."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            return _from_wrappers(_strip(state, prefix))
    return state


def _from_ema_hook(state: StateDict) -> StateDict:
    """mm files of EMA runs: the plain keys are the average, the `ema_*` buffers the last weights."""
    return {key: value for key, value in state.items() if not key.startswith("ema_")}


def _from_mm_backbone(state: StateDict) -> StateDict:
    """Only a backbone, under `backbone.`. Complete detectors keep their keys."""
    return _strip(state, "backbone.") if all(key.startswith("backbone.") for key in state) else state


def _from_hugging_face(state: StateDict) -> StateDict:
    """The transformers port: everything under `model.`, layer scales under another name."""
    if "model.patch_embed.conv1.weight" in state:
        state = _strip(state, "model.")
    return {re.sub(r"\.layer_scale([12])$", r".gamma\1", key): value for key, value in state.items()}


LAYOUTS: list[Callable[[StateDict], StateDict]] = [
    _from_wrappers,
    _from_ema_hook,
    _from_mm_backbone,
    _from_hugging_face,
    from_mmdet2_dino,
    from_mask2former,
]


def to_current(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Convert a state dict of any known layout to the current keys.

    Only keys and views change, so meta tensors are supported; a current state dict is returned unchanged.
    """
    state = dict(state_dict)
    for layout in LAYOUTS:
        state = layout(state)
    return state


def _unwrap(checkpoint: Mapping, ema: bool = False) -> Mapping:
    containers = ("model_ema",) if ema else _CONTAINERS
    for name in containers:
        if isinstance(checkpoint.get(name), Mapping):
            return _unwrap(checkpoint[name])
    if ema:
        raise CheckpointError(
            f"no averaged weights: expected an entry 'model_ema', found {_shorten(map(str, checkpoint))}; "
            "read the plain weights instead (ema=False)"
        )
    return checkpoint


def extract_state_dict(checkpoint: object, *, ema: bool = False) -> StateDict:
    """Return the weights of a loaded checkpoint with the current keys.

    Args:
        checkpoint: result of `load_file`.
        ema: take the averaged weights (`model_ema`) of a training checkpoint.

    Raises:
        CheckpointError: the checkpoint has no weights, or no averaged ones.
    """
    state = _unwrap(checkpoint, ema) if isinstance(checkpoint, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = _shorten(map(str, checkpoint)) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise CheckpointError(
            f"no weights found: expected a state dict, or one under {', '.join(_CONTAINERS)}; "
            f"found {found or 'nothing'}"
        )
    return to_current(state)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name into the `CheckpointError` of functions that see only its contents."""
    try:
        yield
    except CheckpointError as error:
        raise error if str(path) in str(error) else CheckpointError(f"{path}: {error}") from None


def read_state_dict(path: str | Path, *, ema: bool = False) -> StateDict:
    """`extract_state_dict(load_file(path))`; errors name the file."""
    with naming(path):
        return extract_state_dict(load_file(path), ema=ema)


# Loading into a model


def _without_centre(state: StateDict, model: nn.Module) -> StateDict:
    """Drop the rows of the centre point from offsets and masks if the model has `remove_center`."""
    for name, module in model.named_modules():
        if not getattr(module, "remove_center", False):
            continue
        points = module.kernel_size**2
        for layer, numbers in (("offset", 2), ("mask", 1)):
            for key in (f"{name}.{layer}.weight", f"{name}.{layer}.bias"):
                full = state.get(key)
                if full is not None and len(full) == module.group * points * numbers:
                    rows = full.unflatten(0, (module.group, points, numbers))
                    kept = (rows[:, : points // 2], rows[:, points // 2 + 1 :])
                    state[key] = torch.cat(kept, dim=1).flatten(0, 2)
    return state


def _fit(state_dict: Mapping[str, Tensor], model: nn.Module) -> StateDict:
    """Current keys, restricted to this model: a detector's backbone for a bare model, no centres, no pruned levels."""
    state = to_current(state_dict)
    if not any(name == "backbone" for name, _ in model.named_children()):
        inside = {key: value for key, value in state.items() if key.startswith("backbone.")}
        state = _strip(inside, "backbone.") or state
    state = {key: value for key, value in state.items() if not key.startswith(getattr(model, "pruned", ()))}
    return _without_centre(state, model)


def _convert_before_loading(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    own = {key[len(prefix) :]: state_dict[key] for key in list(state_dict) if key.startswith(prefix)}
    current = _fit(_unwrap(own), module)
    if current.keys() != own.keys() or any(current[key] is not own[key] for key in own):
        for key in own:
            del state_dict[prefix + key]
        state_dict.update({prefix + key: value for key, value in current.items()})


def install_layout_hook(module: nn.Module) -> None:
    """Let `module.load_state_dict` (and so mmengine's and timm's loaders) accept every known layout."""
    module.register_load_state_dict_pre_hook(_convert_before_loading)


def _bare(model: nn.Module) -> nn.Module:
    """Unwrap DistributedDataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _bare(model.module)
    return _bare(model._orig_mod) if hasattr(model, "_orig_mod") else model


def _shorten(items: Iterable[str], limit: int = 3) -> str:
    items = list(items)
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")


def _load_strictly(model: nn.Module, state: StateDict) -> None:
    own = model.state_dict()
    # torch fills in batch counters, which are missing in files of torch before 0.4.1 and of some converters.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(keys for _, keys in problems):
        listed = "; ".join(f"{len(keys)} {what}: {_shorten(keys)}" for what, keys in problems if keys)
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__} ({len(own)} entries; {listed}); "
            "use the checkpoint of this model, or the configuration that made the checkpoint"
        )
    # Copying into meta parameters has no effect.
    model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def load_exact(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load for evaluating or resuming: every entry must be present and have the right shape.

    Raises:
        CheckpointError: lists what is missing, unexpected or of another shape.
    """
    model = _bare(model)
    _load_strictly(model, _fit(state_dict, model))


def fit_pretrained(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, rand_init_head: bool = False
) -> tuple[StateDict, list[str]]:
    """Apply the rules of `load_pretrained` without loading: return the state dict to load strictly, and the notices."""
    own = model.state_dict()
    state = _fit(state_dict, model)
    notices = []
    if "head.weight" not in own:
        for key in [key for key in state if key.startswith(_HEAD_PREFIXES) and key not in own]:
            del state[key]
    elif "head.weight" in state:
        notices += _fit_head(state, own, rand_init_head)
    stem = "patch_embed.conv1.weight"
    if stem in own and stem in state and (own[stem].shape[1], state[stem].shape[1]) == (1, 3):
        state[stem] = state[stem].sum(1, keepdim=True)  # the response to an image of three equal channels
        notices.append("the first convolution is summed over the colours, for grey images")
    for what, pattern in (("layer scales", r"levels\.\d+\..*\.gamma[12]$"), ("metadata encoders", r"meta")):
        if absent := [key for key in own if key not in state and re.match(pattern, key)]:
            state.update({key: own[key] for key in absent})
            notices.append(f"{what} are not in the file and keep their initial values ({len(absent)} entries)")
    return state, notices


def load_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor], *, rand_init_head: bool = False) -> list[str]:
    """Initialize from a pretrained file; return a one-line notice for each part that was not loaded.

    - A model without a classifier (`head.weight`) loads only the backbone.
    - Missing layer scales keep their initial value.
    - A head of another class count keeps its initial values; from 21841 to 1000 classes it loads the rows of
      `imagenet.in22k_to_1k`.
    - `rand_init_head`: the head is the model's own, multiplied by 0.001 (`TRAIN.RAND_INIT_FT_HEAD`).
    - Encoders of image metadata, which only the iNaturalist model has, may be missing.

    Raises:
        CheckpointError: anything else that does not fit.
    """
    model = _bare(model)
    state, notices = fit_pretrained(model, state_dict, rand_init_head=rand_init_head)
    _load_strictly(model, state)
    return notices


def _fit_head(state: StateDict, own: StateDict, rand_init: bool) -> list[str]:
    """Make the classifiers in `state` fit the model's class count, in place; `meta_head` is the iNaturalist model's."""
    in_file, wanted = len(state["head.weight"]), len(own["head.weight"])
    if not rand_init and in_file == wanted:
        return []
    both = [f"{head}.{what}" for head in ("head", "meta_head") for what in ("weight", "bias")]
    heads = [key for key in both if key in own and key in state and state[key].shape[1:] == own[key].shape[1:]]
    if rand_init:
        state.update({key: own[key] * 0.001 for key in heads})
        return [f"the head starts from small random values, not from the file's {in_file} classes"]
    if (in_file, wanted) == (21841, 1000):
        rows = in22k_to_1k()
        state.update({key: state[key][rows] for key in heads})
        return ["the head of 1000 classes starts from the rows of the same classes among the file's 21841"]
    state.update({key: own[key] for key in heads})
    return [f"the file's head has {in_file} classes, the model {wanted}: the head is newly initialised"]
