"""Every data layout of the detection configurations with a few tiny images, and configurations that read it."""

import json
import pickle
import shutil

from mmdet.datasets import CocoDataset
from PIL import Image
from tiny_coco import HEIGHT, WIDTH, make_data

from detection.datasets.bdd100k import main as bdd_main


def coco(root, categories, layout):
    """Tiny data as COCO lays them out: `{split: (annotation file, image folder)}`."""
    source = make_data(root / "source")
    content = json.loads((source / "instances.json").read_text())
    names = dict(zip((3, 8), categories))
    content["categories"] = [{"id": key, "name": name} for key, name in names.items()]
    content["annotations"] = [one for one in content["annotations"] if one["category_id"] in names]
    for ann_file, folder in layout:
        (root / ann_file).parent.mkdir(parents=True, exist_ok=True)
        (root / ann_file).write_text(json.dumps(content))
        shutil.copytree(source / "images", root / folder, dirs_exist_ok=True)


def coco_2017(root):
    layout = [(f"annotations/instances_{split}2017.json", f"{split}2017") for split in ("train", "val")]
    coco(root, ("person", "bicycle"), layout)
    for ann_file, _ in layout:
        content = json.loads((root / ann_file).read_text())
        others = enumerate(CocoDataset.METAINFO["classes"][2:], start=9)
        content["categories"] += [{"id": key, "name": name} for key, name in others]
        (root / ann_file).write_text(json.dumps(content))


def crowd_human(root):
    coco(root, ("person",), [(f"annotations/annotation_{split}.json", "Images") for split in ("train", "val")])


def bdd_labels(root):
    """BDD100K's labels of the tiny data: in each image but the last a car, a traffic light and two boxes to ignore."""
    source = make_data(root / "source")
    boxes = [one["bbox"] for one in json.loads((source / "instances.json").read_text())["annotations"]]
    frames = []
    for number, path in enumerate(sorted((source / "images").iterdir())):
        pair = [{"x1": x, "y1": y, "x2": x + w, "y2": y + h} for x, y, w, h in boxes[2 * number : 2 * number + 2]]
        labels = [{"category": name, "box2d": box} for name, box in zip(("car", "traffic light"), pair)]
        corner = {"x1": 0.0, "y1": 0.0, "x2": 9.5, "y2": 8.0}
        labels += [{"category": "trailer", "box2d": corner}, {"category": "lane/road curb", "poly2d": []}]
        labels.append({"category": "pedestrian", "box2d": corner, "attributes": {"crowd": True, "occluded": False}})
        frames.append({"name": path.name, "labels": labels})
    for split in ("train", "val"):
        shutil.copytree(source / "images", root / "images/100k" / split)
        (root / "labels/det_20").mkdir(parents=True, exist_ok=True)
        (root / f"labels/det_20/det_{split}.json").write_text(json.dumps([*frames[:-1], {"name": frames[-1]["name"]}]))


def bdd100k(root):
    bdd_labels(root)
    for split in ("train", "val"):
        folders = root / f"labels/det_20/det_{split}.json", root / "images/100k" / split
        bdd_main([*map(str, folders), str(root / f"annotations/det_{split}.json")])


def voc(root):
    for year in ("VOC2007", "VOC2012", "VOC2012test"):
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / year / folder).mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / year / "JPEGImages" / "1.jpg")
        box = "<xmin>11</xmin><ymin>6</ymin><xmax>60</xmax><ymax>50</ymax>"
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        one = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        (root / year / "Annotations" / "1.xml").write_text(f"<annotation>{size}{one}</annotation>")
        for split in ("trainval", "test"):
            (root / year / "ImageSets" / "Main" / f"{split}.txt").write_text("1\n")


def openimages(root):
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    for split, prefix in (("train", "oidv6-train"), ("validation", "validation")):
        (root / split).mkdir()
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / split / "a.jpg")
        (annotations / f"{prefix}-annotations-bbox.csv").write_text("header\na,x,/m/1,1,0.1,0.6,0.2,0.9,0,0,0,0,0\n")
        metas = [{"filename": "a.jpg", "ori_shape": (HEIGHT, WIDTH, 3)}]
        (annotations / f"{split}-image-metas.pkl").write_bytes(pickle.dumps(metas))
    (annotations / "validation-annotations-human-imagelabels-boxable.csv").write_text("header\na,x,/m/1,1\n")
    (annotations / "class-descriptions-boxable.csv").write_text("/m/1,Thing\n")
    tree = {"LabelName": "/m/0", "Subcategory": [{"LabelName": "/m/1"}]}
    (annotations / "bbox_labels_600_hierarchy.json").write_text(json.dumps(tree))


def lvis(root):
    layout = [
        (f"annotations/lvis_v1_{name}.json", split) for name, split in (("train", "train2017"), ("val", "val2017"))
    ]
    coco(root, ("aerosol_can", "air_conditioner"), layout)
    for ann_file, folder in layout:
        content = json.loads((root / ann_file).read_text())
        for one in content["categories"]:
            one["frequency"] = "f"
        for one in content["images"]:
            one["coco_url"] = f"http://images.cocodataset.org/{folder}/{one['file_name']}"
            one.update(neg_category_ids=[], not_exhaustive_category_ids=[])
        (root / ann_file).write_text(json.dumps(content))


def moved(node, root):
    """The configuration with its data under another folder."""
    if isinstance(node, dict):
        node = {key: moved(value, root) for key, value in node.items()}
        return {**node, "data_root": f"{root}/"} if "data_root" in node else node
    if isinstance(node, list):
        return [moved(item, root) for item in node]
    return str(root / node.split("/", 2)[2]) if isinstance(node, str) and node.startswith("data/") else node
