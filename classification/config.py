"""Configuration of classification: `configs/defaults.py`, YAML files and the command line.

The format is the original project's yacs configuration (OpenGVLab InternImage, MIT licence); its released YAML files
run unchanged.

    args = parse_args()          # or parse_args(["--cfg", "configs/internimage_t_1k_224.yaml", "--eval"])
    config = get_config(args)    # a frozen yacs CfgNode
"""

import argparse
import difflib
import functools
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path

import torch
import yaml
from timm.optim import list_optimizers
from yacs.config import CfgNode

from classification.configs.defaults import CUDA_GRAPH_MODES, DEFAULTS, MAX_TEXT, SETTINGS
from internimage.errors import ArgumentParser, CheckpointError, UserError
from internimage.model_source import ModelSource, find_config, find_model
from internimage.options import add_settings, setting_pairs

__all__ = ["DEFAULTS", "amp_dtype", "channel_statistics", "get_config", "input_size", "load_yaml", "parse_args"]

# The released files have 1 KB, 50 values and 3 levels; a resolved configuration has 3 KB and 120 values.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH, _MAX_FILES = 64 * 1024, 2000, 20, 100

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with limits on depth, number and length of the values; no key may be given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = 0
        self.values_below: dict[yaml.Node, int] = {}  # of finished nodes; an alias counts them again

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        alias, mark, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self.values
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {_MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.values += self.values_below.get(node, _MAX_VALUES) if alias else 1
        if self.values > _MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {_MAX_VALUES} values", problem_mark=mark)
        self.values_below.setdefault(node, self.values - before)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_TEXT:
            raise yaml.MarkedYAMLError(problem=f"a value of more than {MAX_TEXT} characters", problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"key {_short.repr(key.value)} twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return node


def load_yaml(path: str | Path) -> dict:
    """The contents of one YAML file, without its BASE files. Raises `UserError` if it cannot be read."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"the configuration {path} is not a file; check --cfg")
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; check --cfg") from None
    if len(data) > _MAX_BYTES:
        raise UserError(f"the configuration {path} has more than {_MAX_BYTES} bytes; --cfg expects a recipe")
    try:
        return _parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is not a text file; --cfg expects YAML") from None


def _parse_yaml(text: str, source: str) -> dict:
    try:
        values = yaml.load(text, Loader=_Loader)
    except Exception as error:  # for malformed values PyYAML raises ValueError, IndexError and more
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source} is a {type(values).__name__}, expected sections such as DATA: and MODEL:")
    return values


def _leaves(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of a tree; an empty section is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nearest_key(key: str) -> str:
    """The known key most similar to `key`; one with a similar last part takes precedence."""
    last_parts = {name.rpartition(".")[2] for name in SETTINGS}
    alike = difflib.get_close_matches(key.rpartition(".")[2].upper(), last_parts, n=3, cutoff=0.65)
    candidates = [name for name in SETTINGS if name.rpartition(".")[2] in alike] or list(SETTINGS)
    return difflib.get_close_matches(key.upper(), candidates, n=1, cutoff=0.0)[0]


def _set(config: CfgNode, key: str, value: object, source: str) -> None:
    """Set one value. Raises `UserError`, which names `source`, for an unknown key or an invalid value."""
    if key not in SETTINGS:
        if any(known.startswith(f"{key}.") for known in SETTINGS):
            if value == {}:
                return
            raise UserError(f"{source}: {key} is {_short.repr(value)}, expected a section of keys, indented below it")
        key = _short.repr(key)[1:-1]
        raise UserError(f"{source}: unknown key {key}; the nearest known key is {_nearest_key(key)}")
    *sections, name = key.split(".")
    section = functools.reduce(CfgNode.__getitem__, sections, config)
    section[name] = _read(key, value, source)


def _read(key: str, value: object, source: str) -> object:
    """Convert a value to the type of its key. Raises `UserError` for an invalid value."""
    setting = SETTINGS[key]
    try:
        return setting.read(value)
    except ValueError:
        hint = _hint(str(value)[:60], setting.choices)
        raise UserError(f"{source}: {key} is {_short.repr(value)}, expected {setting.expected}{hint}") from None


def _hint(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def _files(path: Path, chain: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict]]:
    """(source, contents) of all files that BASE refers to, then of the file itself."""
    values = load_yaml(path)
    if path.resolve() in chain or len(chain) == _MAX_DEPTH:
        raise UserError(f"{path}: BASE refers to this file itself, or is nested in {_MAX_DEPTH} files; remove it")
    bases = values.pop("BASE", None) or []
    bases = _read("BASE", [bases] if isinstance(bases, str) else bases, str(path))
    for base in filter(None, bases):
        yield from _files(path.parent / base, (*chain, path.resolve()))
    yield str(path), {**values, "BASE": bases or [""]}


# What a checkpoint's configuration says about the run that wrote it, not about its model and data.
_OF_THE_RUN = (
    *("BASE", "OUTPUT", "TAG", "LAUNCHER", "LOCAL_RANK", "COMPILE", "EVAL_MODE", "THROUGHPUT_MODE"),
    *("MODEL.NAME", "MODEL.RESUME", "MODEL.PRETRAINED"),
)


def _saved(source: ModelSource) -> Iterator[tuple[str, dict]]:
    """(source, contents) of the configuration in a checkpoint: YAML text, or the mapping of the original project."""
    content, name = source.config, str(source.checkpoint)
    try:
        leaves = _leaves(_parse_yaml(content, name) if isinstance(content, str) else content)
        found = dict(islice(leaves, _MAX_VALUES))
    except RecursionError:
        raise CheckpointError(f"{name}: its configuration contains itself; save the checkpoint again") from None
    yield name, {key: value for key, value in found.items() if key not in _OF_THE_RUN}


def _sources(args: argparse.Namespace) -> tuple[str, Iterator[tuple[str, dict]]]:
    """The name of the configuration and its (source, contents): from --cfg, or from the checkpoint to evaluate."""
    path = _released(args.model) if args.model else args.cfg
    weights = getattr(args, "MODEL.RESUME") or getattr(args, "MODEL.PRETRAINED")
    if path is None:
        if not (args.EVAL_MODE and weights):
            raise UserError(
                "give --cfg FILE or --model NAME; only --eval --resume CHECKPOINT takes the checkpoint's configuration"
            )
        source = find_model(weights)
        if not source.classifier:
            raise UserError(f"{weights} is not a classifier; use the scripts of detection or segmentation")
        if source.config is not None and not isinstance(source.config, Path):
            return source.name, _saved(source)
        if source.config is None:
            raise UserError(f"{source.name} has no recipe here; give --cfg FILE")
        path = source.config
    return Path(path).stem, _files(Path(path))


def _check_relations(config: CfgNode, source: str) -> None:
    """Raise `UserError` for values that are valid separately, but not together."""
    name = "FLASH_INTERN_IMAGE" if config.MODEL.TYPE == "flash_intern_image" else "INTERN_IMAGE"
    levels, aug, size = config.MODEL[name], config.AUG, min(input_size(config))
    widths = [levels.CHANNELS * 2**level for level in range(len(levels.DEPTHS))]
    divisible = len(levels.GROUPS) == len(widths) and not any(w % g for w, g in zip(widths, levels.GROUPS))
    blocks = levels.DEPTHS[2] if len(levels.DEPTHS) > 2 else 0
    ids = levels.LEVEL2_POST_NORM_BLOCK_IDS or []
    low, high = aug.CUTMIX_MINMAX or (0, 1)
    optimizer = config.TRAIN.OPTIMIZER.NAME
    # Left out: those that need gradients of gradients, CUDA packages.
    known = list_optimizers(exclude_filters=["adahessian", "bnb*", "fused*"])
    for key, value, holds, expected in (
        (f"MODEL.{name}.GROUPS", levels.GROUPS, divisible, f"a divisor of each level's channels, {widths}"),
        (f"MODEL.{name}.DW_KERNEL_SIZE", levels.DW_KERNEL_SIZE, (levels.DW_KERNEL_SIZE or 1) % 2, "an odd number"),
        (
            f"MODEL.{name}.LEVEL2_POST_NORM_BLOCK_IDS",
            ids,
            all(first < second for first, second in pairwise([*ids, blocks])),
            f"ascending numbers of the {blocks} blocks of level 2, which count from 0",
        ),
        ("DATA.ZIP_MODE", True, not config.DATA.ZIP_MODE or config.DATA.DATASET != "tar", "False for tar files"),
        ("AUG.CROP_SCALE", aug.CROP_SCALE, aug.CROP_SCALE[0] <= aug.CROP_SCALE[1], "the smaller number first"),
        ("AUG.CROP_RATIO", aug.CROP_RATIO, aug.CROP_RATIO[0] <= aug.CROP_RATIO[1], "the smaller number first"),
        ("TRAIN.OPTIMIZER.NAME", optimizer, optimizer.lower() in known, f"one of timm's{_hint(optimizer, known)}"),
        ("MODEL.IN_CHANS", config.MODEL.IN_CHANS, config.MODEL.IN_CHANS != 2, "3, or 1 for grey"),
        ("AUG.CUTMIX_MINMAX", [low, high], int(size * low) < int(size * high), "the smaller number first"),
    ):
        if not holds:
            raise UserError(f"{source}: {key} is {value}, expected {expected}")
    if config.TRAIN.SHARD != "fsdp" and (config.TRAIN.CPU_OFFLOAD or config.SHARDED_CHECKPOINT):
        option = "--cpu-offload" if config.TRAIN.CPU_OFFLOAD else "--sharded-checkpoint"
        raise UserError(f"{option} needs --shard fsdp; now it is --shard {config.TRAIN.SHARD}")
    if config.TRAIN.SHARD == "fsdp" and config.COMPILE != "off":
        raise UserError("--compile is not supported with --shard fsdp; omit one of them")
    if config.TRAIN.SHARD == "fsdp" and config.TRAIN.FP16_GRADIENTS:
        raise UserError("TRAIN.FP16_GRADIENTS is not supported with --shard fsdp; omit one of them")
    if config.COMPILE in CUDA_GRAPH_MODES and config.TRAIN.ACCUMULATION_STEPS > 1:
        # Every replay of a graph writes its gradients to the same memory (pytorch issue 169545).
        raise UserError(
            f"--compile {config.COMPILE} uses CUDA graphs, which do not support gradient accumulation; omit "
            "--accumulation-steps, or use --compile default"
        )


# Command-line options for configuration keys, with the help and the choices of the key.
_OPTIONS = {
    "--data-path": "DATA.DATA_PATH",
    "--dataset": "DATA.DATASET",
    "--batch-size": "DATA.BATCH_SIZE",
    "--epochs": "TRAIN.EPOCHS",
    "--lr": "TRAIN.BASE_LR",
    "--zip": "DATA.ZIP_MODE",
    "--cache-mode": "DATA.CACHE_MODE",
    "--skip-bad-images": "DATA.SKIP_BAD_IMAGES",
    "--pretrained": "MODEL.PRETRAINED",
    "--resume": "MODEL.RESUME",
    "--checkpoint": "MODEL.RESUME",  # as evaluation calls it in the other tasks
    "--eval": "EVAL_MODE",
    "--predictions": "PREDICTIONS",
    "--throughput": "THROUGHPUT_MODE",
    "--accumulation-steps": "TRAIN.ACCUMULATION_STEPS",
    "--use-checkpoint": "TRAIN.USE_CHECKPOINT",
    "--shard": "TRAIN.SHARD",
    "--use-zero": "TRAIN.OPTIMIZER.USE_ZERO",
    "--cpu-offload": "TRAIN.CPU_OFFLOAD",
    "--sharded-checkpoint": "SHARDED_CHECKPOINT",
    "--amp": "AMP",
    "--tf32": "TF32",
    "--tag": "TAG",
    "--save-ckpt-num": "SAVE_CKPT_NUM",
    "--logger": "LOGGER",
    "--seed": "SEED",
    "--launcher": "LAUNCHER",
    "--local-rank": "LOCAL_RANK",
}


class _ListKeys(argparse.Action):
    """Print every key with its default, its valid values and its meaning."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for key, setting in SETTINGS.items():
            print(f"{key} = {setting.default!r}  ({setting.expected}): {setting.doc}")
        parser.exit()


def _released(name: str) -> Path:
    """The configuration of a released classifier, that of its row in the model zoo. Raises `UserError`."""
    source = find_config(name)
    if not source.classifier or source.config is None:
        raise UserError(f"--model {name} has no configuration of a classifier; give --cfg FILE")
    return source.config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of `classification/train.py` (`sys.argv` if `argv` is None).

    Option names have dashes or underscores.
    """
    parser = ArgumentParser(description="Train and evaluate InternImage classifiers.", allow_abbrev=False)

    def add(name: str, **settings: object) -> None:
        underscored = "--" + name[2:].replace("-", "_")
        parser.add_argument(*dict.fromkeys((name, underscored)), **{"default": None, **settings})

    which = parser.add_mutually_exclusive_group()
    help = "YAML file, such as configs/internimage_t_1k_224.yaml; --eval of a checkpoint works without it"
    which.add_argument("--config", "--cfg", dest="cfg", metavar="FILE", help=help)
    which.add_argument("--model", metavar="NAME", help="a released model: the YAML file of its row in the model zoo")
    which.add_argument("--list-keys", action=_ListKeys, nargs=0, help="print all configuration keys and exit")
    add_settings(parser, "change configuration keys: --opts TRAIN.WARMUP_EPOCHS 5 AUG.HFLIP=0")
    for option, key in _OPTIONS.items():
        setting = SETTINGS[key]
        if setting.kind is bool:
            form = {"action": "store_true"}
        else:
            form = {"choices": setting.choices} if setting.choices else {"metavar": setting.kind.__name__.upper()}
        if option == "--resume":
            form |= {"nargs": "?", "const": ""}  # without a name: as by default, from this run's own newest one
        add(option, dest=key, help=setting.doc, **form)
    add("--output", dest="OUTPUT", default="output", metavar="DIR", help=SETTINGS["OUTPUT"].doc)
    modes = SETTINGS["COMPILE"].choices
    add("--compile", dest="COMPILE", nargs="?", const="default", choices=modes, help=SETTINGS["COMPILE"].doc)
    add("--no-tf32", dest="TF32", action="store_false", help="do not use TF32")
    add("--disable-amp", dest="AMP", action="store_const", const="off", help="the same as --amp off")
    add("--amp-opt-level", choices=("O0", "O1", "O2"), help="older spelling: O0 is --amp off, the others --amp auto")
    return parser.parse_args(argv)


def get_config(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration for parsed arguments: defaults, then the YAML file, then --opts, then options.

    Without a YAML file, the configuration in the checkpoint to evaluate counts. `MODEL.NAME` is set to the file's
    name and `OUTPUT` to `<output>/<name>`, or `<output>/<name>/<tag>` if there is a tag.

    Raises:
        UserError: an unreadable file, an unknown key, an invalid value, values that do not fit together.
    """
    config = CfgNode(DEFAULTS)
    name, sources = _sources(args)
    for count, (source, values) in enumerate(sources):
        if count == _MAX_FILES:
            raise UserError(f"{args.cfg}: BASE includes more than {_MAX_FILES} files")
        for key, value in _leaves(values):
            _set(config, key, value, source)
    for key, value in setting_pairs(args.opts):
        _set(config, key, value, "--opts")
    for key, value in vars(args).items():
        if key in SETTINGS and value is not None:
            _set(config, key, value, "command line")
    # USE_ZERO is the older name of SHARD zero; recipes have it, and --shard takes precedence.
    asked = getattr(args, "TRAIN.SHARD") or ("zero" if config.TRAIN.OPTIMIZER.USE_ZERO else "none")
    if config.TRAIN.SHARD == "none" or getattr(args, "TRAIN.SHARD"):
        config.TRAIN.SHARD = asked
    config.TRAIN.OPTIMIZER.USE_ZERO = config.TRAIN.SHARD == "zero"
    if args.amp_opt_level == "O0":
        config.AMP = "off"

    config.DATA.DATA_PATH = config.DATA.DATA_PATH or "data/imagenet"
    config.MODEL.NAME = name
    tag = "" if config.TAG == "default" else config.TAG
    config.OUTPUT = str(Path(config.OUTPUT, config.MODEL.NAME, tag))
    _check_relations(config, str(args.cfg or name))
    config.freeze()
    return config


def input_size(config: CfgNode) -> tuple[int, int]:
    """Height and width of the model's input."""
    size = config.DATA.IMG_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def channel_statistics(config: CfgNode) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each input channel; of a grey image the averages over the colours."""
    mean, std = tuple(config.AUG.MEAN), tuple(config.AUG.STD)
    return (mean, std) if config.MODEL.IN_CHANS == 3 else ((sum(mean) / 3,), (sum(std) / 3,))


def amp_dtype(config: CfgNode, device: torch.device | str) -> torch.dtype | None:
    """The autocast dtype for a device, or None for fp32.

    `AMP: auto` is `AMP_TYPE` on a GPU and fp32 on a CPU. `AMP_OPT_LEVEL` has no effect: in the original project the
    default of the command line always replaced it.
    """
    if config.AMP == "auto":
        return getattr(torch, config.AMP_TYPE) if torch.device(device).type == "cuda" else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.AMP]
