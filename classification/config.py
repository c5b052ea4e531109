"""Configuration of classification: YAML files and command line over `configs/defaults.py`.

The format is the original project's yacs configuration (OpenGVLab InternImage, MIT licence); its released YAML files
run unchanged.

    args = parse_args()          # or parse_args(["--cfg", "configs/internimage_t_1k_224.yaml", "--eval"])
    config = get_config(args)    # a frozen yacs CfgNode
"""

import argparse
import ast
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from yacs.config import CfgNode

from classification.configs.defaults import AT_LEAST, CHOICES, CUDA_GRAPH_MODES, DEFAULTS, OPTIONAL
from internimage.errors import UserError

__all__ = ["DEFAULTS", "amp_dtype", "get_config", "load_yaml", "parse_args"]


def _leaves(tree: dict, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _nearest_key(key: str) -> str:
    """The known key that looks most like `key`, preferring one whose last part does."""
    known = list(_leaves(DEFAULTS))
    last_parts = {name.rpartition(".")[2] for name in known}
    alike = difflib.get_close_matches(key.rpartition(".")[2].upper(), last_parts, n=1, cutoff=0.7)
    candidates = [name for name in known if name.rpartition(".")[2] in alike] or known
    return difflib.get_close_matches(key.upper(), candidates, n=1, cutoff=0.0)[0]


def _decode(value: object) -> object:
    """Read a string as the Python literal that it spells, as yacs does.

    YAML 1.1 takes `5e-4` and `None` for strings; the released files mean a number and nothing.
    """
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _coerce(key: str, value: object, default: object, source: str) -> object:
    """Give `value` the type that `key` has, or explain why that cannot be."""
    expected = OPTIONAL.get(key, type(default))
    if isinstance(value, bool) and key in CHOICES:
        # YAML 1.1 reads the words `no` and `off` as False.
        value = next((choice for choice in CHOICES[key] if not value and choice in ("no", "off")), str(value))
    decoded = _decode(value)
    if decoded is None and key in OPTIONAL:
        return None
    if expected is str:
        if value is None or isinstance(value, (str, int, float)):
            # `TAG: 3` and `PRETRAINED: None` are meant as text and as nothing.
            return "" if decoded is None else str(value)
    elif expected is list:
        if isinstance(decoded, (list, tuple)):
            items = [_decode(item) for item in decoded]
            if isinstance(default, list):
                kind = type(default[0])
                items = [_coerce(f"{key}[{i}]", item, kind(), source) for i, item in enumerate(items)]
            return items
    elif expected is float:
        if isinstance(decoded, (int, float)) and not isinstance(decoded, bool):
            return float(decoded)
    elif expected is bool and isinstance(decoded, str) and decoded.lower() in ("true", "false"):
        return decoded.lower() == "true"
    elif type(decoded) is expected:
        return decoded
    or_none = " or None" if key in OPTIONAL else ""
    raise UserError(f"{source}: {key} is {value!r}, expected {expected.__name__}{or_none}")


def _merge(config: CfgNode, values: dict, source: str, prefix: str = "") -> None:
    """Write nested `values` into `config`. Only keys that exist are accepted."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in config:
            key = next(_leaves({name: value}, prefix), key)
            raise UserError(f"{source}: unknown key {key}; the nearest known key is {_nearest_key(key)}")
        if isinstance(config[name], CfgNode):
            if not isinstance(value, dict):
                raise UserError(f"{source}: {key} is {value!r}, expected a section with keys {', '.join(config[name])}")
            _merge(config[name], value, source, f"{key}.")
        else:
            default = DEFAULTS
            for part in key.split("."):
                default = default[part]
            config[name] = _coerce(key, value, default, source)


def load_yaml(path: str | Path) -> dict:
    """The contents of one YAML file, without its BASE files. Raises `UserError` if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; check --cfg") from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is not a text file; --cfg expects YAML") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected sections such as DATA: and MODEL:")
    return values


def _merge_file(config: CfgNode, path: Path, seen: tuple[Path, ...] = ()) -> None:
    """Merge a YAML file over the files that its BASE names."""
    if path.resolve() in seen:
        raise UserError(f"{path}: BASE names this file itself, directly or through another file; remove that entry")
    values = load_yaml(path)
    bases = values.get("BASE") or [""]
    bases = _coerce("BASE", [bases] if isinstance(bases, str) else bases, DEFAULTS["BASE"], str(path))
    for base in filter(None, bases):
        _merge_file(config, path.parent / base, (*seen, path.resolve()))
    _merge(config, {**values, "BASE": bases}, str(path))


def _merge_options(config: CfgNode, options: Sequence[str]) -> None:
    """Merge `--opts KEY VALUE ...`."""
    if len(options) % 2:
        raise UserError(f"--opts expects KEY VALUE pairs, but {options[-1]!r} has no partner")
    for key, value in zip(options[::2], options[1::2]):
        nested: object = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(config, nested, "--opts")


def _validate(config: CfgNode) -> None:
    def value_of(key: str) -> object:
        node = config
        for part in key.split("."):
            node = node[part]
        return node

    for key, choices in CHOICES.items():
        value = value_of(key)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{key} is {value!r}, expected one of {', '.join(choices)}{hint}")
    for key, least in AT_LEAST.items():
        if value_of(key) < least:
            raise UserError(f"{key} is {value_of(key)}, expected at least {least}")
    if config.COMPILE in CUDA_GRAPH_MODES and config.TRAIN.ACCUMULATION_STEPS > 1:
        # Every replay of a graph writes its gradients to the same memory (pytorch issue 169545).
        raise UserError(
            f"--compile {config.COMPILE} uses CUDA graphs, which cannot accumulate gradients; leave out "
            "--accumulation-steps, or use --compile default"
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of `classification/train.py` (`sys.argv` if `argv` is None).

    Options are spelled with dashes or underscores.
    """
    parser = argparse.ArgumentParser(description="Train and evaluate InternImage classifiers.", allow_abbrev=False)

    def add(name: str, **settings: object) -> None:
        underscored = "--" + name[2:].replace("-", "_")
        parser.add_argument(*dict.fromkeys((name, underscored)), **{"default": None, **settings})

    add(
        "--cfg",
        required=True,
        metavar="FILE",
        help="YAML file, such as configs/internimage_t_1k_224.yaml",
    )
    add("--opts", nargs="+", metavar="KEY VALUE", help="change configuration keys: --opts TRAIN.EPOCHS 30 SEED 1")
    add("--data-path", metavar="DIR", help="data set folder (default data/imagenet)")
    add("--dataset", help="imagenet, imagenet22K, inat18 or folder (any ImageFolder)")
    add("--batch-size", type=int, help="images per process and step")
    add("--zip", action="store_true", help="read train.zip and val.zip instead of folders")
    add("--cache-mode", choices=CHOICES["DATA.CACHE_MODE"], help="zip mode: how much to keep in memory")
    add("--skip-bad-images", action="store_true", help="count images that cannot be read and go on without them")
    add("--pretrained", metavar="FILE", help="initialise from this checkpoint")
    add("--resume", metavar="FILE", help="continue from (or, with --eval, evaluate) this checkpoint")
    add("--eval", action="store_true", help="only evaluate")
    add("--throughput", action="store_true", help="only measure images per second")
    add("--accumulation-steps", type=int, help="batches per optimizer step")
    add("--use-checkpoint", action="store_true", help="gradient checkpointing: less memory, more time")
    add("--use-zero", action="store_true", help="spread the optimizer's state over the processes (ZeRO)")
    add("--amp", choices=CHOICES["AMP"], help="mixed precision (default: AMP_TYPE on GPUs, off on CPU)")
    add("--disable-amp", action="store_true", help="the same as --amp off")
    add("--amp-opt-level", choices=("O0", "O1", "O2"), help="older spelling: O0 is --amp off, the others --amp auto")
    add("--tf32", action="store_true", help="float32 products on GPUs in TF32 (the default)")
    add("--no-tf32", action="store_false", dest="tf32", help="float32 products on GPUs in full float32")
    add(
        "--compile",
        nargs="?",
        const="default",
        choices=CHOICES["COMPILE"],
        help="torch.compile the model; reduce-overhead and max-autotune replay CUDA graphs (default: off)",
    )
    add("--output", default="output", metavar="DIR", help="results go to DIR/<name of the YAML file>")
    add("--tag", help="name of this run: results go to a further folder of that name")
    add("--save-ckpt-num", type=int, help="how many checkpoints to keep")
    add("--seed", type=int, help="random seed")
    add("--launcher", choices=CHOICES["LAUNCHER"], help="who started the processes (default: found out)")
    add("--local-rank", type=int, help="set by some launchers; otherwise taken from the environment")
    return parser.parse_args(argv)


# Command-line options that are a configuration key by another name.
_OPTION_KEYS = {
    "data_path": "DATA.DATA_PATH",
    "dataset": "DATA.DATASET",
    "batch_size": "DATA.BATCH_SIZE",
    "zip": "DATA.ZIP_MODE",
    "cache_mode": "DATA.CACHE_MODE",
    "skip_bad_images": "DATA.SKIP_BAD_IMAGES",
    "pretrained": "MODEL.PRETRAINED",
    "resume": "MODEL.RESUME",
    "eval": "EVAL_MODE",
    "throughput": "THROUGHPUT_MODE",
    "accumulation_steps": "TRAIN.ACCUMULATION_STEPS",
    "use_checkpoint": "TRAIN.USE_CHECKPOINT",
    "use_zero": "TRAIN.OPTIMIZER.USE_ZERO",
    "amp": "AMP",
    "tf32": "TF32",
    "compile": "COMPILE",
    "output": "OUTPUT",
    "tag": "TAG",
    "save_ckpt_num": "SAVE_CKPT_NUM",
    "seed": "SEED",
    "launcher": "LAUNCHER",
    "local_rank": "LOCAL_RANK",
}


def get_config(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration for parsed arguments: defaults, then the YAML file, then --opts, then options.

    Afterwards `MODEL.NAME` is the YAML file's name and `OUTPUT` is `<output>/<name>`, or `<output>/<name>/<tag>` if a
    tag was given. Raises `UserError` for an unreadable file, an unknown key, or a value of the wrong type.
    """
    config = CfgNode(DEFAULTS)
    path = Path(args.cfg)
    _merge_file(config, path)
    _merge_options(config, getattr(args, "opts", None) or [])

    for option, key in _OPTION_KEYS.items():
        value = getattr(args, option, None)
        if value is not None:
            _merge_options(config, [key, value])
    if getattr(args, "disable_amp", False) or getattr(args, "amp_opt_level", None) == "O0":
        config.AMP = "off"

    config.DATA.DATA_PATH = config.DATA.DATA_PATH or "data/imagenet"
    config.MODEL.NAME = path.stem
    tag = "" if config.TAG == "default" else config.TAG
    config.OUTPUT = str(Path(config.OUTPUT, config.MODEL.NAME, tag))
    _validate(config)
    config.freeze()
    return config


def amp_dtype(config: CfgNode, device: torch.device | str) -> torch.dtype | None:
    """The autocast dtype for a device, or None for plain fp32.

    `AMP: auto` means `AMP_TYPE` on a GPU and fp32 on a CPU. `AMP_OPT_LEVEL` has no say: in the original the command
    line's default always replaced it.
    """
    if config.AMP == "auto":
        return getattr(torch, config.AMP_TYPE) if torch.device(device).type == "cuda" else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.AMP]
