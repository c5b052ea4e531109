"""The configuration for own data: what both tasks write into it, and their command line."""

import os
import pprint
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config

from ...errors import ArgumentParser, UserError
from ...files import check_writable
from ...model_source import find_config
from .loading import OwnData
from .readers import READERS

__all__ = ["config_text", "located", "read_base", "replaced", "run"]

_PROJECT = Path(__file__).resolve().parents[3]


def read_base(base: Path) -> dict:
    """The content of the configuration to start from. Raises `UserError` if there is no such file."""
    if not base.is_file():
        raise UserError(f"no configuration at {base}; choose one from detection/configs or segmentation/configs")
    return Config.fromfile(base, import_custom_modules=False).to_dict()


def located(path: str | Path, out: Path) -> str:
    """A path as text of the configuration `out`: relative to it, and moved with it, if given so or below its folder."""
    path, home = Path(path), out.resolve().parent
    if path.is_absolute() and not path.is_relative_to(out.absolute().parent):
        return repr(str(path))
    return f'"{{{{ fileDirname }}}}/{os.path.relpath(path.absolute(), home)}"'  # mmengine fills in the first part


def replaced(node: object, key: str, value: object) -> object:
    """A part of a configuration in which every `key` has this value, or what this function makes of the old one."""
    if isinstance(node, dict):
        new = value if callable(value) else lambda _: value
        return {name: new(inner) if name == key else replaced(inner, key, value) for name, inner in node.items()}
    return [replaced(inner, key, value) for inner in node] if isinstance(node, list) else node


def _for_few_images(pipelines: dict, preset: dict, size: int, base: Path) -> dict:
    """The pipelines for images in a square of `size` pixels, with the preset's steps, if it has any, in training."""
    train = pipelines.pop("train_pipeline")
    if "steps" in preset:
        train = [*(step for step in train if step["type"].startswith("Load")), *preset["steps"], train[-1]]
    train = replaced(replaced(train, "scale", (size, size)), "crop_size", (size, size))
    scales = [min(step["scale"]) for step in pipelines["test_pipeline"] if "scale" in step]
    if not scales:
        raise UserError(f"{base} resizes in another way than --few-images changes: its test pipeline has no scale")
    others = replaced(pipelines, "scale", lambda old: 2 * (round(size * min(old) / scales[0]),))
    return {"train_pipeline": train} | others


def _class_numbers(node: object, path: str, new: int, old: int = 0, *, in_list: bool = False) -> str | None:
    """The override, as text, of every number below `path` that depends on the classes; None if there is none."""
    if isinstance(node, list):
        texts = [_class_numbers(item, f"{path}[{i}]", new, old, in_list=True) for i, item in enumerate(node)]
        return f"[{', '.join(text or f'{path}[{i}]' for i, text in enumerate(texts))}]" if any(texts) else None
    if not isinstance(node, dict):
        return None
    old = node.get("num_classes", old)
    inner = {key: _class_numbers(value, f"{path}.{key}", new, old, in_list=in_list) for key, value in node.items()}
    parts = [f"{key}={text}" for key, text in inner.items() if text]
    parts += [f"num_classes={new}"] * ("num_classes" in node)
    if weights := node.get("class_weight"):  # those of Mask2Former end in that of "no object"
        parts.append(f"class_weight={f'[1.0] * {new} + [{weights[-1]}]' if len(weights) == old + 1 else None}")
    return f"dict({', '.join([path] * in_list + parts)})" if parts else None


def config_text(
    base: Path,
    config: dict,
    out: Path,
    data: OwnData,
    lines: Sequence[str],
    datasets: dict[str, str],
    edits: dict,
    **options: object,
) -> str:
    """The text of a configuration that trains `base` on a data set.

    Args:
        base, config, out: configuration to inherit, its content, and path of the new one.
        data: the data set.
        lines: of the task, after the model.
        datasets: arguments of the data sets of `train` and `val`, as text, without their pipelines.
        edits: keys of the pipelines' steps with their new values.
        options: `processes`, their number, which the learning rate is for; `load_from`, weights to start from;
            `few_images`, the size of few images in pixels; `preset`, the task's configuration for them.

    Raises:
        UserError: `few_images`, and the test pipeline of the base has no scale.
    """
    home, base = out.resolve().parent, base.resolve()
    count, processes = len(data.classes), options.get("processes", 1)
    few = read_base(options["preset"]) if (size := options.get("few_images")) else {}
    batch = min(config["train_dataloader"]["batch_size"], len(data.scenes["train"]))  # an incomplete one is dropped
    batch, factor = min(batch, few.get("batch_size", batch)), few.get("lr_factor", 1)
    rate = config["optim_wrapper"]["optimizer"]["lr"]
    total = config.get("auto_scale_lr", {}).get("base_batch_size", batch * processes)
    note = f"the base has {rate} for {total}" + (f", few images take {factor} times as much" if factor != 1 else "")
    names = {"train": "train_pipeline", "val": "test_pipeline"}  # mmseg's functions look for this name
    pipelines = {name: config[f"{half}_dataloader"]["dataset"]["pipeline"] for half, name in names.items()}
    pipelines |= {key: config[key] for key in ("tta_pipeline",) if key in config}
    for key, value in edits.items():
        pipelines = replaced(pipelines, key, value)
    pipelines = _for_few_images(pipelines, few, size, base) if size else pipelines
    text = f'''"""{base.stem} on own data ({data.format}), {count} classes. Written by own_data.py."""

_base_ = {(os.path.relpath(base, home) if home.is_relative_to(_PROJECT) else str(base))!r}

# The numbers that depend on the classes.
model = {_class_numbers(config["model"], "_base_.model", count)}

# For {processes} x {batch} images; {note}. After another choice train with --auto-scale-lr.
optim_wrapper = dict(optimizer=dict(lr={factor * rate * batch * processes / total:.4g}))
auto_scale_lr = dict(base_batch_size={batch * processes})

'''
    layout = {"width": 110, "compact": True, "sort_dicts": False}
    lines = [*lines, *(f"{name} = {pprint.pformat(steps, **layout)}" for name, steps in pipelines.items())]
    if size:
        types = {hook["type"] for hook in few["hooks"]}
        hooks = [hook for hook in config.get("custom_hooks", ()) if hook["type"] not in types]
        lines.append(f"custom_hooks = {pprint.pformat([*hooks, *few['hooks']], **layout)}")
    for half, dataset in datasets.items():
        first = f"batch_size={batch}, " if half == "train" else ""
        dataset = f"{dataset},\n    pipeline={names[half]},\n"
        if half == "train" and "times" in few:
            dataset = f"dict(_base_.train_dataloader.dataset,\n    {dataset})"
            dataset = f"_delete_=True, type='RepeatDataset', times={few['times']}, dataset={dataset}"
        lines.append(f"{half}_dataloader = dict({first}dataset=dict(\n    {dataset}))")
    weights = options.get("load_from") or config.get("load_from")
    weights = located(weights, out) if Path(weights or "").is_file() else repr(weights)
    lines.append(f"test_dataloader = val_dataloader\nload_from = {weights}")
    return text + "\n".join(lines) + "\n"


def run(own_config: Callable, task: str, order: tuple[str, str], argv: Sequence[str] | None, *flags: str) -> None:
    """The command line of a task's `own_config`; `order` names the values of --train, `flags` are the task's own."""
    parser = ArgumentParser(description=f"Write a configuration for your own data: {', '.join(READERS)}.")
    parser.add_argument("base", help="configuration to start from, or its name")
    parser.add_argument("--data-path", "--data-root", dest="data_root", required=True, help="folder of the data set")
    parser.add_argument("--train", nargs=2, metavar=order, help="relative to --data-root; defaults to its data.yaml")
    parser.add_argument("--val", nargs=2, metavar=order, help="defaults to a fifth of the training images")
    parser.add_argument("--format", choices=READERS, help="of the annotations; defaults to what the files show")
    parser.add_argument("--processes", type=int, default=1, help="that will train: the learning rate is for them")
    help = "for tens to some hundreds of images, which are resized to this many pixels (longer side)"
    parser.add_argument("--few-images", type=int, metavar="SIZE", help=help)
    for flag in flags:
        parser.add_argument(flag, action="store_true", help="learn boxes without masks")
    parser.add_argument("--pretrained", "--load-from", dest="load_from", help="model to start from, not the base's")
    parser.add_argument("--output", "--out", dest="out", type=Path, required=True, help="configuration to write")
    options = vars(parser.parse_args(argv))
    if options["processes"] < 1 or (options["val"] and not options["train"]):
        parser.error("--processes is at least 1, and --val needs --train")
    if (options["few_images"] or 32) < 32:
        parser.error("--few-images is the size of the images in pixels, at least 32, such as 224")
    check_writable(options["out"])
    halves = [half for half in (options.pop("train"), options.pop("val")) if half]
    base, out, root = find_config(options.pop("base")).config, options.pop("out"), options.pop("data_root")
    out.write_text(own_config(base, out, root, *halves, **options), encoding="utf-8")
    print(f"wrote {out}; train with: python {task}/train.py {out}")
