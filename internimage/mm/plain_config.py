"""The configuration in a checkpoint: written as plain data, and read without executing anything from the file.

A checkpoint may come from anywhere. mmengine executes the text of a configuration, imports the modules that it names,
and calls any importable function that a `type` names; here a `type` must be a name in the frameworks' registries.
"""

import importlib
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry, init_default_scope

from ..errors import CheckpointError

__all__ = ["KEY", "from_plain", "to_plain"]

KEY = "configuration"  # in the checkpoint's `meta`
_SCOPES = ("mmdet", "mmseg")
# What a checkpoint may import; other modules must be imported before.
_OWN_MODULES = (
    *("internimage.mm", "detection.models", "detection.datasets"),
    *("segmentation.models", "segmentation.datasets"),
)
# Names that the frameworks look up elsewhere, and registered ones that evaluate text of the configuration.
_OTHERS = ("nms", "soft_nms", "RoIAlign", "torchvision.models.convnext.LayerNorm2d")
_MAX_VALUES = 100_000  # a released configuration has about 2000
_EXECUTING = ("CameraMotionCompensation", "RFSearchHook")


def to_plain(config: Config) -> dict | None:
    """A configuration as dicts, lists, tuples, strings, numbers and None; None if it holds anything else."""

    def is_plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, (str, int)) and is_plain(item) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return all(map(is_plain, value))
        return value is None or type(value) in (str, int, float, bool)

    plain = config.to_dict()
    return plain if is_plain(plain) else None


def _registered(scope: str, kinds: list[str]) -> set[str]:
    """The names in the registries of mmengine, of a framework, and of those that are prefixes in `kinds`."""
    names = set(_OTHERS)
    for framework in {"mmengine", scope, *(kind.partition(".")[0] for kind in kinds)} & {"mmengine", *_SCOPES}:
        for registry in vars(importlib.import_module(f"{framework}.registry")).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                names |= {f"{registry.scope}.{name}" for name in registry.module_dict}
                if framework in ("mmengine", scope):
                    names |= set(registry.module_dict)
    return {name for name in names if name.rpartition(".")[2] not in _EXECUTING}


def _mappings(data: object) -> list[Mapping]:
    """All mappings in a tree. Raises `CheckpointError` for one that is too large, or contains itself."""
    found, pending, count = [], [data], 0
    while pending:
        value, count = pending.pop(), count + 1
        if count > _MAX_VALUES:
            raise CheckpointError(f"it has more than {_MAX_VALUES} values")
        if isinstance(value, Mapping):
            found.append(value)
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
    return found


def from_plain(data: Mapping, name: str) -> Config:
    """The configuration in a checkpoint.

    Args:
        data: result of `to_plain`, from the file.
        name: of the checkpoint, for messages.

    Raises:
        CheckpointError: the data is no configuration of mmdet or mmseg, or names something that is not registered.
    """
    try:
        scope = data.get("default_scope")
        if scope not in _SCOPES or not all(isinstance(data.get(key), Mapping) for key in ("model", "test_dataloader")):
            raise CheckpointError("it is not one of mmdet or mmseg, with model and test_dataloader")
        mappings = _mappings(data)
        imports = [item["imports"] for item in mappings if "imports" in item]
        for module in {str(name) for names in imports for name in (names if isinstance(names, list) else [names])}:
            if module in _OWN_MODULES:
                importlib.import_module(module)
            else:
                print_log(f"{name}: not importing {module}; import it first if the model needs it", logger="current")
        kinds = [item[key] for item in mappings for key in ("type", "constructor") if key in item]
        kinds = [kind if isinstance(kind, str) else repr(kind) for kind in kinds]
        if unknown := set(kinds) - _registered(scope, kinds):
            raise CheckpointError(f"{min(unknown)[:60]!r} is not in the registries of {scope} and mmengine")
        scopes = [item["_scope_"] for item in mappings if "_scope_" in item]
        if foreign := [word for word in scopes if word not in (*_SCOPES, "mmengine")]:
            raise CheckpointError(f"{str(foreign[0])[:60]!r} is not a framework that is known here")
        config = Config({key: value for key, value in data.items() if key != "custom_imports"})
    except CheckpointError as error:
        raise CheckpointError(
            f"the configuration in {name} is not used: {error}; give the file of the configuration as well"
        ) from None
    init_default_scope(scope)
    return config
