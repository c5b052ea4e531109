r"""Write a configuration for your own data: label maps, CVAT's coloured ones, or outlines of COCO, YOLO or LabelMe.

    python segmentation/datasets/own_data.py segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py \
        --data-root data/own --train images/train labels/train --val images/val labels/val --output own.py

For label maps, `data/own/classes.json` is `{"classes": ["background", "leaf"], "palette": [[0, 0, 0], [0, 160, 60]]}`;
class i of the list is the value i, 255 is ignored, and `palette` is optional. The new configuration inherits the given
one and works with `train.py`, `test.py` and `image_demo.py`. What is converted is written into `own_converted`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import internimage.mm  # noqa: F401 - isort: skip - before mmseg is imported
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from internimage.errors import UserError, exit_on_user_error
from internimage.mm.own_data.configuration import config_text, located, read_base, run
from internimage.mm.own_data.loading import OwnData, Pair, label_map, load
from internimage.mm.own_data.readers import Problems, read_classes
from internimage.sources import image_files

_FEW_IMAGES = Path(__file__).parents[1] / "configs/_base_/few_images.py"
__all__ = ["OwnDataset", "own_config", "read_classes"]


@DATASETS.register_module()
class OwnDataset(BaseSegDataset):
    """Images of any usual type and label maps `.png` of the same names; classes from a file.

    Args:
        class_file: see `read_classes`; relative to `data_root`.
        kwargs: as mmseg's `BaseSegDataset`, with `data_prefix=dict(img_path=..., seg_map_path=...)`; `ann_file` lists
            images below `img_path`, one a line, by default all.
    """

    def __init__(self, class_file: str = "classes.json", data_root: str = "", **kwargs) -> None:
        super().__init__(data_root=data_root, metainfo=read_classes(Path(data_root, class_file)), **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dictionary per image, in the order of the names."""
        images, labels = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
        if self.ann_file:
            names = Path(self.ann_file).read_text(encoding="utf-8").splitlines()
        else:
            names = [file.relative_to(images) for file in image_files(images)]
        return [
            {
                "img_path": str(images / name),
                "seg_map_path": str(labels / Path(name).with_suffix(".png")),
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for name in names
        ]


def _write_converted(folder: Path, data: OwnData, images: Path) -> None:
    """Write the classes, a list of images for each half, and the label maps that are not plain ones already."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"classes": data.classes, "palette": data.palette}
    (folder / "classes.json").write_text(json.dumps(content), encoding="utf-8")
    for half, scenes in data.scenes.items():
        names = [os.path.relpath(scene.image, images) for scene in scenes]
        (folder / f"{half}.txt").write_text("\n".join(names), encoding="utf-8")
        for name, scene in zip(names, scenes if data.format != "label-maps" else ()):
            path = folder / "labels" / Path(name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label_map(scene, data.classes, Problems())).save(path)


def own_config(base: str | Path, out: str | Path, data_root: str | Path, *halves: Pair, **options: object) -> str:
    """Return the text of a configuration that trains and evaluates `base` on own data.

    Args:
        base: a configuration of segmentation/configs with one training set, for example on ADE20K.
        out: where the text will be saved; what is converted is written to the folder `NAME_converted` beside it.
        data_root: folder of the data set. A relative one is written relative to `out`, see `located`.
        halves: folder of images, and label maps or other annotations, for training and validation, relative to
            `data_root`; see `load`.
        options: `format`, `processes`, `few_images` and `load_from`, as on the command line.

    Raises:
        UserError: as `load`; `base` trains on several data sets.
    """
    base, out, root = Path(base), Path(out), Path(data_root)
    config = read_base(base)
    if "datasets" in config["train_dataloader"]["dataset"] or "decode_head" not in config["model"]:
        raise UserError(f"{base} trains on several data sets; start from another, such as one of configs/ade20k")
    data = load(root, [pair[::-1] for pair in halves], options.pop("format", None), masks=True, maps=True)
    places, listed = {half: [*map(repr, pair)] for half, pair in zip(("train", "val"), halves)}, ""
    if not data.as_it_is:
        folder = out.with_name(f"{out.stem}_converted")
        plain = data.format == "label-maps"
        _write_converted(folder, data, root / halves[0][0] if plain else root)
        pair = [*map(repr, halves[0])] if plain else ["''", located(folder / "labels", out)]
        places, listed = dict.fromkeys(data.scenes, pair), f", class_file={located(folder / 'classes.json', out)}"
    datasets = {}
    for half, (images, labels) in places.items():
        names = f"{listed}, ann_file={located(folder / f'{half}.txt', out)}" if listed else ""
        datasets[half] = f"_delete_=True, type='OwnDataset', data_root=data_root{names},\n"
        datasets[half] += f"    data_prefix=dict(img_path={images}, seg_map_path={labels})"
    lines = [f"data_root = {located(root, out)}"]
    preprocessor = {"size": 2 * (options["few_images"],)} if options.get("few_images") else {}
    if config["model"]["data_preprocessor"].get("seg_pad_val", 255) != 255:
        preprocessor["seg_pad_val"] = 255  # the base pads with its first class
    if preprocessor:
        lines.insert(0, f"model['data_preprocessor'] = {preprocessor}")
    edits = {"num_classes": len(data.classes)}
    return config_text(base, config, out, data, lines, datasets, edits, preset=_FEW_IMAGES, **options)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and write one configuration."""
    run(own_config, "segmentation", ("IMAGES", "ANNOTATIONS"), argv)


if __name__ == "__main__":
    main()
