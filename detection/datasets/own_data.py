r"""Write a configuration for your own data in COCO's format; the class names are read from the annotations.

    python detection/datasets/own_data.py detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py \
        --data-root data/own --train annotations/train.json train --val annotations/val.json val --out own.py

The new configuration inherits the given one and works with `train.py`, `test.py` and
`DetInferencer`.
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from internimage.errors import ArgumentParser, UserError, exit_on_user_error

__all__ = ["own_config", "read_annotations"]


def read_annotations(ann_file: str | Path, images: str | Path, *, masks: bool = False) -> tuple[str, ...]:
    """Check a COCO annotation file and return its class names in the order of the labels, which is the file's order.

    Args:
        ann_file: JSON with `images`, `annotations` and `categories`.
        images: folder that holds the images.
        masks: whether every annotation must have a `segmentation`.

    Raises:
        UserError: no such file, not COCO's format, no categories or one twice, annotations of unknown categories or
            images, missing image files, no masks.
    """
    ann_file, images = Path(ann_file), Path(images)
    if not ann_file.is_file():
        raise UserError(f"no annotation file at {ann_file}; give its path relative to --data-root")
    try:
        coco = json.loads(ann_file.read_text())
        names = tuple(category["name"] for category in coco["categories"])
        categories = {category["id"] for category in coco["categories"]}
        files = {image["id"]: image["file_name"] for image in coco["images"]}
        annotations = [(one["id"], one["image_id"], one["category_id"], one["bbox"]) for one in coco["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{ann_file} is not in COCO's format ({error!r}); it needs images, annotations and categories"
        ) from error
    if not names or len(set(names)) < len(names) or len(categories) < len(names):
        raise UserError(f"{ann_file} has no categories, or one twice; every category needs a name and an id of its own")
    for key, image, category, _ in annotations:
        if category not in categories or image not in files:
            what = f"category {category}" if category not in categories else f"image {image}"
            raise UserError(f"annotation {key} in {ann_file} belongs to {what}, which the file does not list; add it")
    if missing := [file for file in files.values() if not (images / file).is_file()]:
        raise UserError(f"{len(missing)} of {len(files)} images are missing, first {images / missing[0]}; add them")
    if masks and (bare := [one["id"] for one in coco["annotations"] if not one.get("segmentation")]):
        raise UserError(
            f"{len(bare)} annotations in {ann_file} have no segmentation, first {bare[0]}; add masks, or start from a "
            "configuration that detects boxes only (dino_*)"
        )
    return names


def _with_num_classes(config: object, path: str, num_classes: int) -> str | None:
    """The override, as text, that sets every `num_classes` below `config`; None if there is none."""
    if isinstance(config, dict):
        inner = {key: _with_num_classes(value, f"{path}.{key}", num_classes) for key, value in config.items()}
        parts = [f"{key}={text}" for key, text in inner.items() if text]
        if "num_classes" in config:
            parts.append(f"num_classes={num_classes}")
        return f"dict({', '.join(parts)})" if parts else None
    if isinstance(config, list) and any(isinstance(item, dict) and "num_classes" in item for item in config):
        return f"[dict(head, num_classes={num_classes}) for head in {path}]"
    return None


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
        base: a configuration on COCO (boxes, or boxes and masks).
        out: where the text will be saved; `_base_` is written relative to it.
        data_root: folder of the data set, as seen from where `train.py` will be run.
        train: annotation file and image folder, relative to `data_root`.
        val: the same for evaluation. It must have the same categories in the same order.
        load_from: path or URL of a trained detector to start from; heads with another class count start from scratch.

    Raises:
        UserError: as `read_annotations`; the two sets have different categories; `base` is not on COCO.
    """
    from mmengine.config import Config

    base, out, data_root = Path(base), Path(out), Path(data_root)
    if not base.is_file():
        raise UserError(f"no configuration at {base}; choose one from detection/configs/coco")
    config = Config.fromfile(base, import_custom_modules=False)
    if config.train_dataloader.dataset.get("type") != "CocoDataset":
        raise UserError(f"{base} is not on CocoDataset; start from a configuration in detection/configs/coco")
    masks = "segm" in config.val_evaluator.metric
    names = read_annotations(data_root / train[0], data_root / train[1], masks=masks)
    others = read_annotations(data_root / val[0], data_root / val[1], masks=masks)
    if names != others:
        raise UserError(
            f"training and validation have different categories, {list(names)} and {list(others)}; give both files "
            "the same list in the same order"
        )
    root = f"{data_root}/"
    loader = """dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, ann_file={0!r}, data_prefix=dict(img={1!r}))
)"""
    lines = [
        f'"""{base.stem} on {data_root}, {len(names)} classes. Written by detection/datasets/own_data.py."""',
        "",
        f"_base_ = {os.path.relpath(base.resolve(), out.resolve().parent)!r}",
        "",
        f"data_root = {root!r}",
        f"metainfo = dict(classes={names!r})",
        f"train_dataloader = {loader.format(train[0], train[1] + '/')}",
        f"val_dataloader = {loader.format(val[0], val[1] + '/')}",
        "test_dataloader = val_dataloader",
        f"val_evaluator = dict(ann_file={root + val[0]!r})",
        "test_evaluator = val_evaluator",
        "",
        "# The heads, with the number of these classes.",
        f"model = {_with_num_classes(config.model.to_dict(), '_base_.model', len(names))}",
    ]
    if load_from:
        lines += ["", f"load_from = {load_from!r}"]
    return "\n".join(lines) + "\n"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read the command line and write one configuration."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="configuration to start from, one of detection/configs/coco")
    parser.add_argument("--data-path", "--data-root", dest="data_root", required=True, help="folder of the data set")
    parser.add_argument("--train", nargs=2, required=True, metavar=("JSON", "IMAGES"), help="relative to --data-root")
    parser.add_argument("--val", nargs=2, required=True, metavar=("JSON", "IMAGES"), help="relative to --data-root")
    parser.add_argument("--pretrained", "--load-from", dest="load_from", help="detector to start from, not the base's")
    parser.add_argument("--output", "--out", dest="out", type=Path, required=True, help="configuration to write")
    args = parser.parse_args(argv)
    text = own_config(args.base, args.out, args.data_root, tuple(args.train), tuple(args.val), args.load_from)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    print(f"wrote {args.out}; train with: python detection/train.py {args.out}")


if __name__ == "__main__":
    main()
