r"""Write a configuration for your own data: a folder of images, a folder of label maps, and `classes.json`.

    python segmentation/datasets/own_data.py segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py \
        --data-root data/own --train images/train labels/train --val images/val labels/val --out own.py

`data/own/classes.json` is `{"classes": ["background", "leaf"], "palette": [[0, 0, 0], [0, 160, 60]]}`; class i of the
list is the value i in the label maps, 255 is ignored, and `palette` is optional. The new configuration inherits the
given one and works with `train.py`, `test.py` and `image_demo.py`.
"""

import json
import os
import pprint
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import internimage.mm  # noqa: F401 - isort: skip - before mmseg is imported
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from internimage.errors import ArgumentParser, UserError, exit_on_user_error
from internimage.sources import image_files

__all__ = ["OwnDataset", "own_config", "read_classes"]


def read_classes(path: str | Path) -> dict[str, list]:
    """Read the file of class names and colours: `{"classes": [...], "palette": [[r, g, b], ...] or []}`.

    Raises:
        UserError: no such file, or its content is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no classes at {path}; write {{"classes": [names], "palette": [[red, green, blue], ...]}}')
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes, palette = list(content["classes"]), [list(color) for color in content.get("palette", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} must be JSON with "classes" and optionally "palette" ({error!r})') from error
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise UserError(f"{path}: classes must be names, at least one, each of them once; got {classes}")
    if len(classes) > 255:
        raise UserError(f"{path} has {len(classes)} classes; label maps of 8 bits hold at most 255")
    is_byte = lambda value: isinstance(value, int) and 0 <= value <= 255  # noqa: E731
    if palette and (
        len(palette) != len(classes) or any(len(color) != 3 or not all(map(is_byte, color)) for color in palette)
    ):
        raise UserError(
            f"{path}: palette must have one [red, green, blue] (0 to 255) for each of {len(classes)} classes"
        )
    return {"classes": classes, "palette": palette}


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Images and label maps `.png` of the same names, sorted. Raises `UserError` if a folder or file is missing."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}; give it relative to --data-root")
    pairs = [(file, labels / file.relative_to(images).with_suffix(".png")) for file in image_files(images)]
    if missing := [pair for pair in pairs if not pair[1].is_file()]:
        raise UserError(
            f"{len(missing)} of {len(pairs)} images have no label map, first {missing[0][0]}: it should be "
            f"{missing[0][1]}; add it or leave the image out"
        )
    return pairs


@DATASETS.register_module()
class OwnDataset(BaseSegDataset):
    """Images of any usual type and label maps `.png` of the same names; classes from a file.

    Args:
        class_file: see `read_classes`; relative to `data_root`.
        kwargs: as mmseg's `BaseSegDataset`, with `data_prefix=dict(img_path=..., seg_map_path=...)`.
    """

    def __init__(self, class_file: str = "classes.json", data_root: str = "", **kwargs) -> None:
        super().__init__(data_root=data_root, metainfo=read_classes(Path(data_root, class_file)), **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dictionary per image, in the order of the names."""
        return [
            {
                "img_path": str(image),
                "seg_map_path": str(labels),
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for image, labels in _pairs(Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"]))
        ]


def _unweighted(loss: dict | list | None) -> str:
    """The losses of a head without the class weights of the base, which belong to its classes."""
    losses = loss if isinstance(loss, list) else [loss or {}]
    if not any(each.get("class_weight") for each in losses):
        return ""
    plain = [{key: value for key, value in each.items() if key != "class_weight"} for each in losses]
    return f", loss_decode={plain!r}" if isinstance(loss, list) else ", loss_decode=dict(class_weight=None)"


def _pipeline(steps: list, num_classes: int) -> list:
    """A pipeline's steps with the class count of the loading step changed."""
    if isinstance(steps, list | tuple):
        return [_pipeline(step, num_classes) for step in steps]
    changed = {key: _pipeline(value, num_classes) if key == "transforms" else value for key, value in steps.items()}
    return changed | ({"num_classes": num_classes} if steps["type"] == "LoadLabelMap" else {})


def _text(steps: list) -> str:
    return pprint.pformat(steps, width=110, sort_dicts=False)


def own_config(
    base: str | Path,
    out: str | Path,
    data_root: str | Path,
    train: tuple[str, str],
    val: tuple[str, str],
    load_from: str | None = None,
) -> str:
    """Return the text of a configuration that trains and evaluates `base` on own data.

    Args:
        base: a configuration of segmentation/configs with one training set, for example on ADE20K.
        out: where the text will be saved; `_base_` is written relative to it.
        data_root: folder of the data set with its `classes.json`, as seen from where `train.py` will be run.
        train: folder of images and folder of label maps, relative to `data_root`.
        val: the same for evaluation.
        load_from: path or URL of a trained segmentor; a head with another class count starts from scratch.

    Raises:
        UserError: as `read_classes`; a folder, an image or a label map is missing; `base` trains on several data sets.
    """
    base, data_root = Path(base), Path(data_root)
    if not base.is_file():
        raise UserError(f"no configuration at {base}; choose one from segmentation/configs")
    config = Config.fromfile(base, import_custom_modules=False).to_dict()
    if "datasets" in config["train_dataloader"]["dataset"] or "decode_head" not in config["model"]:
        raise UserError(f"{base} trains on several data sets; start from another, such as one of configs/ade20k")
    count = len(read_classes(data_root / "classes.json")["classes"])
    for images, labels in (train, val):
        _pairs(data_root / images, data_root / labels)

    def loader(folders: tuple[str, str], pipeline: str) -> str:
        prefix = f"dict(img_path={folders[0]!r}, seg_map_path={folders[1]!r})"
        return (
            "dict(\n    dataset=dict(\n        _delete_=True,\n        type='OwnDataset',\n"
            f"        data_root=data_root,\n        data_prefix={prefix},\n        pipeline={pipeline},\n    )\n)"
        )

    heads = [
        f"{name}=dict(num_classes={count}{_unweighted(config['model'][name].get('loss_decode'))})"
        for name in ("decode_head", "auxiliary_head")
        if name in config["model"]
    ]
    if "pixel_decoder" in config["model"]["decode_head"]:  # one weight per class and a tenth for "no object"
        heads = [f"decode_head=dict(num_classes={count}, loss_cls=dict(class_weight=[1.0] * {count} + [0.1]))"]
    relative = os.path.relpath(base.resolve(), Path(out).resolve().parent)
    lines = [
        f'"""{base.stem} on {data_root}, {count} classes. Written by segmentation/datasets/own_data.py."""',
        "",
        f"_base_ = {relative!r}",
        "",
        f"data_root = {str(data_root)!r}",
        f"train_pipeline = {_text(_pipeline(config['train_dataloader']['dataset']['pipeline'], count))}",
        f"test_pipeline = {_text(_pipeline(config['val_dataloader']['dataset']['pipeline'], count))}",
        *([f"tta_pipeline = {_text(_pipeline(config['tta_pipeline'], count))}"] if "tta_pipeline" in config else []),
        "",
        f"train_dataloader = {loader(train, 'train_pipeline')}",
        f"val_dataloader = {loader(val, 'test_pipeline')}",
        "test_dataloader = val_dataloader",
        "",
        f"model = dict({', '.join(heads)})",
    ]
    if load_from:
        lines += ["", f"load_from = {load_from!r}"]
    return "\n".join(lines) + "\n"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the command line and write one configuration."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="configuration to start from, one of segmentation/configs")
    help = "folder of the data set, which holds classes.json"
    parser.add_argument("--data-path", "--data-root", dest="data_root", required=True, help=help)
    parser.add_argument("--train", nargs=2, required=True, metavar=("IMAGES", "LABELS"), help="relative to --data-root")
    parser.add_argument("--val", nargs=2, required=True, metavar=("IMAGES", "LABELS"), help="relative to --data-root")
    parser.add_argument("--pretrained", "--load-from", dest="load_from", help="segmentor to start from, not the base's")
    parser.add_argument("--output", "--out", dest="out", type=Path, required=True, help="configuration to write")
    args = parser.parse_args(argv)
    text = own_config(args.base, args.out, args.data_root, tuple(args.train), tuple(args.val), args.load_from)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"wrote {args.out}; train with: python segmentation/train.py {args.out}")


if __name__ == "__main__":
    main()
