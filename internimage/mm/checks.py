"""Clear errors for mistakes in configurations and data of the mm frameworks."""

import difflib
import json
import multiprocessing
import os
import re
import stat
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from torch import nn
from torch.utils.data import Dataset

from ..errors import UserError
from ..options import setting_pairs
from ..workers import explained_worker_death

__all__ = [
    "add_config",
    "add_settings",
    "check_classes",
    "check_data_files",
    "explained",
    "explained_empty",
    "merge_options",
    "read_config",
]

# Settings that mmengine's runner reads although a configuration may lack them.
_RUNNER_KEYS = (
    *("work_dir", "load_from", "resume", "launcher", "randomness", "experiment_name", "custom_hooks", "auto_scale_lr"),
    *("find_unused_parameters", "model_wrapper_cfg", "compile", "activation_checkpointing", "tta_model"),
    *("tta_pipeline", "shard"),
)


def read_config(path: str, options: Mapping | None = None) -> Config:
    """Read a configuration file and merge `options`, those of `--cfg-options`, into it.

    Raises:
        UserError: no such file, one that cannot be read, or an option that does not fit the configuration.
    """
    file = Path(path)
    if not file.is_file():
        names = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, names, n=1)
        hint = f"did you mean {file.parent / near[0]}?" if near else "the released ones are in the folder configs"
        raise UserError(f"no configuration at {path}; {hint}")
    try:
        config = Config.fromfile(path)
    except UserError:
        raise
    except Exception as error:  # configurations are Python code
        raise UserError(
            f"{path} cannot be read as a configuration ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    return merge_options(config, options)


def merge_options(config: Config, options: Mapping | None) -> Config:
    """Merge the options of `--cfg-options`; raise `UserError` for one whose first part the configuration lacks."""
    known = [*config.keys(), *_RUNNER_KEYS]
    for name in options or ():
        first = name.split(".")[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1, cutoff=0)
            raise UserError(f"--cfg-options {name}: the configuration has no {first!r}; did you mean {near[0]!r}?")
        try:
            config.merge_from_dict({name: options[name]})
        except (KeyError, TypeError) as error:  # an index beyond a list, a dictionary in the place of a list
            reason = str(error.args[0]).partition(" of list ")[0]
            raise UserError(f"--cfg-options {name} does not fit the configuration: {reason[:200]}") from error
    return config


class _SettingsAction(DictAction):
    """mmengine's action of `--cfg-options`, which takes KEY VALUE as well."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: list[str], *args: object) -> None:
        """Add the settings to those of earlier `--opts`."""
        super().__call__(parser, namespace, [f"{key}={value}" for key, value in setting_pairs(values)], *args)


def add_settings(parser: ArgumentParser) -> None:
    """Add `--opts` to a parser."""
    help = "settings to change, for example train_dataloader.batch_size=4"
    names = ("--opts", "--cfg-options")
    parser.add_argument(*names, dest="cfg_options", nargs="+", action=_SettingsAction, metavar="KEY=VALUE", help=help)


def add_config(parser: ArgumentParser) -> None:
    """Add CONFIG, as an argument or as `--config`, and `--opts`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("config", nargs="?", default=SUPPRESS, help="configuration file")
    which.add_argument("--config", "--cfg", dest="config", metavar="FILE", help="the same")
    add_settings(parser)


def _datasets(config: Mapping) -> Iterator[Mapping]:
    """The plain data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    inner = [config["dataset"]] if "dataset" in config else config.get("datasets", [])
    if not inner:
        yield config
    for dataset in inner:
        yield from _datasets(dataset)


def check_data_files(config: Config, phases: tuple[str, ...]) -> None:
    """Raise `UserError` if an annotation file or image folder of some phases (`train`, `val`, `test`) is missing."""
    for phase in phases:
        loader = config.get(f"{phase}_dataloader")
        for dataset in _datasets(loader["dataset"]) if loader else ():
            root = Path(dataset.get("data_root") or "")
            paths = {"ann_file": dataset.get("ann_file")}
            paths |= {f"data_prefix.{key}": value for key, value in (dataset.get("data_prefix") or {}).items()}
            for option, value in paths.items():
                if not isinstance(value, str) or "://" in value or (option == "ann_file" and not value):
                    continue
                if not (root / value).exists():
                    raise UserError(
                        f"no data at {root / value} ({phase}_dataloader.dataset.{option}); put the data there, or set "
                        f"another folder with --cfg-options {phase}_dataloader.dataset.data_root=..."
                    )


def _plain_dataset(dataset: Dataset) -> Dataset:
    inner = getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", ())), None)
    return _plain_dataset(inner) if inner is not None else dataset


def _check_categories(dataset: Dataset, phase: str, classes: tuple[str, ...]) -> None:
    """Raise `UserError` if a COCO annotation file lacks classes; mmdet silently ignores them."""
    plain = _plain_dataset(dataset)
    found = getattr(plain, "cat_ids", None)
    if found is None or len(found) == len(classes):
        return
    content = json.loads(Path(plain.ann_file).read_text(encoding="utf-8"))
    names = [category["name"] for category in content["categories"]]
    missing = [name for name in classes if name not in names]
    raise UserError(
        f"{plain.ann_file} lacks {len(missing)} of the {len(classes)} classes of {phase}_dataloader ({missing[0]!r}, "
        f"...); its categories are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}: set "
        "dataset.metainfo.classes to these"
    )


def _empty(phase: str) -> UserError:
    return UserError(
        f"{phase}_dataloader has no image: none has an annotation of its classes; check its ann_file and "
        "metainfo.classes (filter_cfg.filter_empty_gt leaves out images without objects)"
    )


@contextmanager
def explained_empty(phase: str) -> Iterator[None]:
    """Raise `UserError` if a data loader that is built has no images; mmengine's own error does not say so."""
    try:
        yield
    except ValueError as error:
        if "need at least one array" in str(error):
            raise _empty(phase) from error
        raise


def check_classes(model: nn.Module, dataset: Dataset, phase: str, *, exact: bool) -> None:
    """Compare a data set's classes with its annotations and with the model's heads.

    Args:
        model: detector or segmentor.
        dataset: of the loader of `phase`.
        phase: `train`, `val` or `test`, for messages.
        exact: heads must have as many classes as the data; otherwise at least as many.

    Raises:
        UserError: no images, a class without category, or a head with another class count.
    """
    if len(dataset) == 0:
        raise _empty(phase)
    classes = dataset.metainfo.get("classes")
    if classes is None:
        return
    _check_categories(dataset, phase, classes)
    for name, module in model.named_modules():
        count = getattr(module, "num_classes", None)
        if not isinstance(count, int) or name.endswith("rpn_head"):
            continue
        if count < len(classes) or (exact and count != len(classes)):
            raise UserError(
                f"{name} has num_classes={count}, {phase}_dataloader has {len(classes)} classes "
                f"({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}); set num_classes={len(classes)} "
                "in the model's heads"
            )


class _RegularFiles(LocalBackend):
    """mmengine's local files, without those that may block forever."""

    def get(self, filepath: str | Path) -> bytes:
        """Read a file. Raises `UserError` if it is a pipe, a socket or a device."""
        mode = os.stat(filepath).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{filepath} is not a file but a pipe, a socket or a device; replace it or leave it out")
        return super().get(filepath)


register_backend("local", _RegularFiles, force=True, prefixes="")


_UNKNOWN_TYPE = re.compile(r"([^\s'\"]+) is not in the (\w+)::(\w+) registry")
_UNKNOWN_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
_STATES = {"T": " (stopped)", "D": " (waiting for a file system)"}


def _late_workers() -> str:
    """The loaders' worker processes, with the state that Linux gives for those that do not run."""
    names = []
    for worker in multiprocessing.active_children():
        status = Path(f"/proc/{worker.pid}/stat")
        state = status.read_text().rpartition(")")[2].split()[0] if status.exists() else ""
        names.append(f"{worker.pid}{_STATES.get(state, '')}")
    return ", ".join(names)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of bad data and settings, in this process or in a loader's workers, into `UserError`.

    These are image and annotation files that are missing or cannot be read, workers that die or give no batch, batches
    of one image for BatchNorm, and types and arguments that mmengine's registries do not have.
    """
    try:
        with explained_worker_death("--cfg-options train_dataloader.num_workers"):
            yield
    except UserError as error:
        # torch raises a worker's error again with the text of its traceback; the message is the last line.
        if "Original Traceback" not in str(error):
            raise
        raise UserError(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    except RuntimeError as error:
        if "negative dimension" in str(error):
            raise UserError(f"a size of the model is negative, such as num_classes; correct it ({error})") from error
        if not str(error).startswith("DataLoader timed out"):
            raise
        raise UserError(
            f"{str(error).removeprefix('DataLoader ')}: no batch came from the loader's processes {_late_workers()}; "
            "see whether they run and the file system answers, or wait longer with "
            "--cfg-options train_dataloader.timeout=SECONDS (or val_, test_)"
        ) from None
    except FileNotFoundError as error:
        paths = re.findall(r"No such file or directory: '([^']+)'", str(error))
        raise UserError(
            f"missing file {paths[-1] if paths else error}; the annotations name it: restore it or leave it out there"
        ) from error
    except AssertionError as error:
        # The last one: a traceback also shows the source.
        if found := re.findall(r"failed to load image: (\S+)", str(error)):
            raise UserError(f"{found[-1]} is not a readable image; replace it or leave it out") from error
        raise
    except KeyError as error:
        if found := _UNKNOWN_TYPE.search(str(error)):
            kind, scope, registry = found.groups()
            known = MODELS if registry == "model" else TRANSFORMS if registry == "transform" else DATASETS
            names = [name for part in (known, *known.children.values()) for name in part.module_dict]
            near = difflib.get_close_matches(kind, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "check the name, and custom_imports for one of your own"
            raise UserError(f"type={kind!r} is not a {registry} of {scope}; {hint}") from error
        raise
    except TypeError as error:
        if found := _UNKNOWN_ARGUMENT.search(str(error)):
            kind, argument = found.groups()
            raise UserError(f"dict(type={kind!r}) has no argument {argument!r}; correct the configuration") from error
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"an annotation file is not valid JSON ({error}); check the ann_file entries") from error
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        hint = "set train_dataloader.batch_size to at least 2, and drop_last=True if single images are left"
        raise UserError(f"BatchNorm cannot train on a batch of one image; {hint}") from error
