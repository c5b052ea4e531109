"""Cut the aerial photographs of the DeepForest package into tiles: a small data set of tree crowns in COCO's format.

    pip download --no-deps deepforest && unzip -q deepforest-*.whl "deepforest/data/*"
    python benchmarks/tree_crowns.py deepforest/data data/trees

The photographs (NEON, Yellowstone, 10 cm a pixel) and their hand-drawn boxes come with DeepForest (Weinstein et al.,
2020, MIT licence). The eastern fifth of each photograph is for validation, so no tree is in both parts. A box that a
border cuts counts in the tiles that hold at least 40% of it.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop")
SIDE, KEPT = 200, 0.4


def main(source: Path, out: Path) -> None:
    """Write `train.json`, `val.json` and the tiles of the photographs in `source` to the folder `out`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    parts = {part: {"images": [], "annotations": []} for part in ("train", "val")}
    for name in PHOTOGRAPHS:
        photograph = Image.open(source / f"{name}.png").convert("RGB")
        found = ElementTree.parse(source / f"{name}.xml").iter("bndbox")
        boxes = np.array([[float(box.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax")] for box in found])
        columns, rows = photograph.width // SIDE, photograph.height // SIDE
        for column, row in np.ndindex(columns, rows):
            part = parts["val" if column >= 0.8 * columns else "train"]
            x, y = column * SIDE, row * SIDE
            image = {"id": len(part["images"]), "file_name": f"{name}_{x}_{y}.png", "height": SIDE, "width": SIDE}
            part["images"].append(image)
            photograph.crop((x, y, x + SIDE, y + SIDE)).save(out / "images" / image["file_name"])
            inside = np.clip(boxes - [x, y, x, y], 0, SIDE)
            for whole, box in zip(boxes, inside):
                width, height = box[2:] - box[:2]
                if width * height >= KEPT * np.prod(whole[2:] - whole[:2]):
                    annotation = {"id": len(part["annotations"]) + 1, "image_id": image["id"], "category_id": 1}
                    annotation |= {"bbox": [*box[:2], width, height], "area": width * height, "iscrowd": 0}
                    part["annotations"].append(annotation)
    for name, part in parts.items():
        (out / f"{name}.json").write_text(json.dumps({**part, "categories": [{"id": 1, "name": "tree"}]}))
        print(f"{name}: {len(part['images'])} tiles, {len(part['annotations'])} boxes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
