"""Find what the name or the checkpoint of a model stands for: its configuration and the file of its weights.

Checkpoints of our trainings carry their configuration as plain data (classification: `config`, YAML text; mm:
`meta.configuration`). Text in a checkpoint is never executed as Python.
"""

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .checkpoint import load_file
from .errors import CheckpointError, UserError
from .variants import list_models
from .zoo import Release, local_checkpoint, releases

__all__ = ["ModelSource", "find_config", "find_model"]

# Of the repository, or of an installation, which has the tasks' configurations too.
_ROOT = Path(__file__).resolve().parents[1]
_FILES = (".pth", ".pt", ".bin", ".safetensors")
_TASKS = ("classification", "detection", "segmentation")


@dataclass(frozen=True)
class ModelSource:
    """A model's weights and what says how to build it.

    Attributes:
        name: of the model, or of the checkpoint's file.
        classifier: whether it is one, or else a detector or segmentor of OpenMMLab.
        config: file of the configuration; or its content, from the checkpoint; None for a released classifier, whose
            name says everything.
        checkpoint: file of the weights; None if the name has none.
        class_names: of a classifier's checkpoint, if it has them.
    """

    name: str
    classifier: bool
    config: Path | Mapping | str | None
    checkpoint: Path | None
    class_names: list[str] | None = None


@functools.cache
def _config_files() -> dict[str, Path]:
    """The configurations of all tasks by name."""
    files = (path for task in _TASKS for path in (_ROOT / task / "configs").rglob("*.*"))
    return {
        p.stem: p for p in files if p.suffix in (".py", ".yaml") and "_base_" not in p.parts and p.stem != "defaults"
    }


@functools.cache
def _released() -> dict[str, tuple[Release, str]]:
    """Released weights, and the path of their configuration, by the names of weights, files and configurations."""
    found: dict[str, tuple[Release, str]] = {}
    for release in releases():
        configs = release.config.split()
        for name in (release.name, Path(release.checkpoint).stem):
            found.setdefault(name, (release, configs[0] if configs else ""))
        for config in configs:
            found.setdefault(Path(config).stem, (release, config))
    return {name: pair for name, pair in found.items() if name}


def _unknown(name: str) -> UserError:
    known = {*_released(), *_config_files(), *list_models()}
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "internimage models lists the names"
    return UserError(f"no model, file or folder {name!r}; {hint}")


def find_config(name: str | os.PathLike) -> Path:
    """The file of a configuration given by its path or name. Raises `UserError` if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    release = _released().get(str(name))
    if release and release[1]:
        return _ROOT / release[1]
    if str(name) in _config_files():
        return _config_files()[str(name)]
    raise _unknown(str(name))


def _by_config(file: Path, checkpoint: Path | None, names: list[str] | None = None) -> ModelSource:
    return ModelSource((checkpoint or file).stem, file.suffix in (".yaml", ".yml"), file, checkpoint, names)


def _by_name(name: str) -> ModelSource | None:
    """A released model, or a configuration without released weights; without the file of the weights."""
    if name in list_models():
        return ModelSource(name, True, None, None)
    if name in _released() or name in _config_files():
        path = find_config(name)
        return ModelSource(name, path.suffix == ".yaml", path, None)
    return None


def _file_of(text: str) -> Path:
    """The file of a path or URL; of a training's folder the best checkpoint, else the newest one."""
    folder = Path(text).expanduser()
    found = [path for path in folder.glob("*.pth") if not path.name.startswith(".")] if folder.is_dir() else []
    if not found:
        return local_checkpoint(text)
    return max(found, key=lambda path: ("best" in path.name and "ema" not in path.name, path.stat().st_mtime))


def find_model(
    source: str | os.PathLike, config: str | os.PathLike | None = None, *, weights: bool = True
) -> ModelSource:
    """Find a model's configuration and weights; download released weights.

    Args:
        source: name of a released model or configuration; path or URL of a checkpoint; folder of a training, of which
            the best or else newest checkpoint counts.
        config: path or name of the configuration, for a checkpoint that has none.
        weights: False for the architecture alone: `source` may also be the file of a configuration.

    Raises:
        UserError: no such model, file or configuration.
        CheckpointError: a file that cannot be read, or does not say how to build its model.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.suffix in (".py", ".yaml", ".yml"):
        if weights:
            raise UserError(f"{text} is a configuration; give the checkpoint, and this file as its configuration")
        return _by_config(find_config(text), None)
    if not path.exists() and "/" not in text and path.suffix not in _FILES:
        named = _by_name(text)
        if named is None:
            raise _unknown(text)
        release = _released().get(text)
        path = local_checkpoint(release[0].name) if weights and release and release[0].checkpoint else None
        if config is None or path is None:
            return replace(named, checkpoint=path)
    path = path if path.suffix and path.is_file() else _file_of(text)
    content = load_file(path)
    content = content if isinstance(content, Mapping) else {}
    meta = content.get("meta") if isinstance(content.get("meta"), Mapping) else {}
    names = content.get("class_names")
    names = list(map(str, names)) if isinstance(names, list) else None
    if config is not None:
        if str(config) in list_models():
            return ModelSource(str(config), True, None, path, names)
        return _by_config(find_config(config), path, names)
    named = _by_name(Path(text).stem)
    saved = content.get("config")
    if isinstance(saved, str) or (isinstance(saved, Mapping) and not named):  # the original project's is a mapping
        return ModelSource(path.stem, True, saved, path, names)
    if isinstance(meta.get("configuration"), Mapping):
        return ModelSource(path.stem, False, meta["configuration"], path)
    if named is None:
        raise CheckpointError(
            f"{text} does not say how to build its model; give its configuration as well (config=FILE in Python, "
            "--config FILE or CONFIG on the command line)"
        )
    return replace(named, checkpoint=path)
