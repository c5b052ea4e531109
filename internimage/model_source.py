"""Find what the name or the checkpoint of a model stands for: its configuration and the file of its weights.

Checkpoints of our trainings carry their configuration as plain data (classification: `config`, YAML text; mm:
`meta.configuration`). Text in a checkpoint is never executed as Python.
"""

import difflib
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .checkpoint import load_file
from .errors import CheckpointError, UserError
from .variants import list_models
from .zoo import local_checkpoint, releases

__all__ = ["ModelSource", "checkpoint_file", "find_config", "find_model", "is_transformers_folder"]

_ROOT = Path(__file__).resolve().parents[1]  # of the repository, or of an installation, which also has the tasks
_YAML = (".yaml", ".yml")
_NOT_MODELS = {"_base_", "accelerate", "defaults.py"}


class ModelSource(NamedTuple):
    """A model's weights and what says how to build it.

    Attributes:
        name: of the model, of its configuration, or of the checkpoint's file.
        classifier: whether it is one, or else a detector or segmentor of OpenMMLab.
        config: file of the configuration; or its content, from the checkpoint; None for a released classifier without
            one, whose name says everything.
        checkpoint: file of the weights, if there is one.
        class_names: of a classifier's checkpoint, if it has them.
    """

    name: str
    classifier: bool
    config: Path | Mapping | str | None
    checkpoint: Path | None
    class_names: list[str] | None = None


@functools.cache
def _models() -> dict[str, tuple[Path | None, str]]:
    """Configuration and name of the released weights, if any, by the names of models, configurations and weights."""
    found: dict[str, tuple[Path | None, str]] = {}
    for task in ("classification", "detection", "segmentation"):
        for path in sorted((_ROOT / task / "configs").rglob("*.*")):
            if path.suffix in (".py", ".yaml") and not _NOT_MODELS & {path.name, *path.parts}:
                found.setdefault(path.stem, (path, ""))
    for release in reversed(releases()):
        configs = [_ROOT / config for config in release.config.split()]
        weights = release.name if release.checkpoint else ""
        found |= {config.stem: (config, weights) for config in configs}
        found |= {name: ((configs or [None])[0], weights) for name in {release.name, Path(release.checkpoint).stem}}
    return {name: (None, name) for name in list_models()} | found


def _by_name(name: str) -> tuple[ModelSource, str]:
    """The model of a name, without its file, and the name of its weights."""
    if name not in _models():
        near = difflib.get_close_matches(name, _models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "internimage models lists the names"
        raise UserError(f"no model, file or folder {name!r}; {hint}")
    config, weights = _models()[name]
    return ModelSource(name, config is None or config.suffix in _YAML, config, None), weights


def find_config(name: str | os.PathLike) -> ModelSource:
    """A configuration given by its path, or by the name of a model. Raises `UserError` if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return ModelSource(path.stem, path.suffix in _YAML, path, None)
    return _by_name(str(name))[0]


def checkpoint_file(text: str) -> Path:
    """The file of a path or URL; of a training's folder the best checkpoint, else the newest one."""
    folder = Path(text).expanduser()
    sharded = [path.parent for path in folder.glob("*/.metadata")]
    found = [path for path in (*folder.glob("*.pth"), *sharded) if not path.name.startswith(".")]
    if not found or (folder / ".metadata").is_file():  # is itself a sharded checkpoint
        return local_checkpoint(text)
    return max(found, key=lambda path: ("best" in path.name and "ema" not in path.name, path.stat().st_mtime))


def is_transformers_folder(path: Path) -> bool:
    """Whether a folder has an InternImage in the layout of transformers, see `internimage.hf`."""
    file = path / "config.json"
    return file.is_file() and '"model_type": "internimage"' in file.read_text(encoding="utf-8", errors="replace")


def find_model(source: str | os.PathLike, config: str | os.PathLike | None = None) -> ModelSource:
    """Find a model's configuration and weights; download released weights.

    Args:
        source: name of a released model or configuration; path or URL of a checkpoint; folder of a training, of which
            the best or else newest checkpoint counts.
        config: path or name of the configuration; it is preferred to the checkpoint's own.

    Raises:
        UserError: no such model, file or configuration, or no released weights.
        CheckpointError: a file that cannot be read, or does not say how to build its model.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if is_transformers_folder(path):
        raise UserError(f"{text} is for transformers; first run python -m internimage.hf.convert {text} model.pth")
    if path.suffix in (".py", *_YAML):
        raise UserError(f"{text} is a configuration; give the checkpoint, and this file as its configuration")
    if not path.exists() and "/" not in text and path.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        named, weights = _by_name(text)
        if not weights:
            raise UserError(f"{text} has no released weights; give a checkpoint, and this name as its configuration")
        return (named if config is None else find_config(config))._replace(checkpoint=local_checkpoint(weights))
    path = checkpoint_file(text)
    rest = path / "rest.pth"  # of a sharded checkpoint: its configuration, without most weights
    content = load_file(rest if rest.is_file() else path)
    content = content if isinstance(content, Mapping) else {}
    meta = content.get("meta") if isinstance(content.get("meta"), Mapping) else {}
    saved, plain, names = content.get("config"), meta.get("configuration"), content.get("class_names")
    names = list(map(str, names)) if isinstance(names, list) else None
    stem = Path(text).stem
    if config is not None:
        return find_config(config)._replace(checkpoint=path, class_names=names)
    if isinstance(saved, str) or (isinstance(saved, Mapping) and stem not in _models()):  # ours, the original project's
        return ModelSource(path.stem, True, saved, path, names)
    if isinstance(plain, Mapping):
        return ModelSource(path.stem, False, plain, path)
    if stem not in _models():
        raise CheckpointError(
            f"{text} does not say how to build its model; give its configuration as well (config=FILE in Python, "
            "--config FILE or CONFIG on the command line)"
        )
    return _by_name(stem)[0]._replace(checkpoint=path)
