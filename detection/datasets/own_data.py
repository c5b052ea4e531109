r"""Write a configuration for your own data: COCO, YOLO, Pascal VOC or LabelMe; the files show which.

    python detection/datasets/own_data.py detection/configs/coco/mask_rcnn_internimage_t_fpn_1x_coco.py \
        --data-root data/own --train annotations/train.json train --val annotations/val.json val --output own.py

The new configuration inherits the given one and works with `train.py`, `test.py` and `DetInferencer`. What is not
COCO's, or is split or repaired, is written as COCO's into `own_converted`; your files stay as they are.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pycocotools import mask

from internimage.errors import UserError, exit_on_user_error
from internimage.mm.own_data.configuration import config_text, located, read_base, run
from internimage.mm.own_data.loading import OwnData, Pair, load, to_rle

_FEW_IMAGES = Path(__file__).parents[1] / "configs/_base_/few_images.py"
__all__ = ["own_config"]


def _write_coco(path: Path, data: OwnData, root: Path) -> Path:
    """Write a half of a data set, the path's stem, as COCO's JSON with images relative to `root`; return the path."""
    images, annotations = [], []
    for scene in data.scenes[path.stem]:
        size = {"width": scene.size[0], "height": scene.size[1]}
        images.append({"id": len(images) + 1, "file_name": os.path.relpath(scene.image, root), **size})
        for one in scene.objects:
            ids = len(annotations) + 1, len(images), data.classes.index(one.name) + 1
            area = float(mask.area(to_rle(one.outline, scene.size))) if one.outline else one.box[2] * one.box[3]
            other = {"bbox": one.box, "area": area, "iscrowd": int(one.crowd)}
            outline = {"segmentation": one.outline} if one.outline else {}
            annotations.append(dict(zip(("id", "image_id", "category_id"), ids)) | other | outline)
    categories = [{"id": number, "name": name} for number, name in enumerate(data.classes, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def own_config(
    base: str | Path, out: str | Path, data_root: str | Path, *halves: Pair, boxes_only: bool = False, **options: object
) -> str:
    """Return the text of a configuration that trains and evaluates `base` on own data.

    Args:
        base: a configuration on COCO (boxes, or boxes and masks).
        out: where the text will be saved; what is converted is written to the folder `NAME_converted` beside it.
        data_root: folder of the data set. A relative one is written relative to `out`, see `located`.
        halves: annotations and folder of images for training and validation, relative to `data_root`; see `load`.
        boxes_only: learn boxes without masks.
        options: `format`, `processes`, `few_images` and `load_from`, as on the command line.

    Raises:
        UserError: as `load`; `base` is not on COCO.
    """
    base, out, root = Path(base), Path(out), Path(data_root)
    config = read_base(base)
    if config["train_dataloader"]["dataset"].get("type") != "CocoDataset":
        raise UserError(f"{base} is not on CocoDataset; start from a configuration in detection/configs/coco")
    metric = "bbox" if boxes_only else config["val_evaluator"]["metric"]
    data = load(root, halves, options.pop("format", None), masks="segm" in metric)
    places = {half: (root / file, images + "/") for half, (file, images) in zip(("train", "val"), halves)}
    if not data.as_it_is:
        folder = out.with_name(f"{out.stem}_converted")
        places = {half: (_write_coco(folder / f"{half}.json", data, root), "") for half in data.scenes}
    files = {half: located(file, out) for half, (file, _) in places.items()}
    datasets = {
        half: f"data_root=data_root, metainfo=metainfo,\n    ann_file={files[half]}, data_prefix=dict(img={images!r})"
        for half, (_, images) in places.items()
    }
    lines = [f"data_root = {located(root, out)} + '/'", f"metainfo = dict(classes={tuple(data.classes)!r})"]
    lines.append(f"val_evaluator = dict(ann_file={files['val']}, metric={metric!r})")
    lines.append("test_evaluator = val_evaluator")
    if boxes_only and "mask_head" in config["model"].get("roi_head", {}):
        lines.insert(0, "model['roi_head'].update(mask_head=None, mask_roi_extractor=None)")
    edits = {"with_mask": False} if boxes_only else {}
    return config_text(base, config, out, data, lines, datasets, edits, preset=_FEW_IMAGES, **options)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and write one configuration."""
    run(own_config, "detection", ("ANNOTATIONS", "IMAGES"), argv, "--boxes-only")


if __name__ == "__main__":
    main()
