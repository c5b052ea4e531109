"""Every kind of data that a configuration reads, in small: samples for training, and full marks for perfect answers."""

import detection.datasets  # noqa: F401 - isort: skip - before mmdet
import json
import pickle
import shutil
from importlib.util import find_spec

import pytest
from mmdet.registry import DATASETS, METRICS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import set_random_seed
from mmengine.structures import InstanceData
from PIL import Image
from released_recipes import CONFIGS
from tiny_coco import HEIGHT, WIDTH, make_data

register_all_modules()


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
    coco(root, ("dog", "cat"), layout)


def crowd_human(root):
    coco(root, ("person",), [(f"annotations/annotation_{split}.json", "Images") for split in ("train", "val")])


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


CASES = {
    "coco/mask_rcnn_internimage_t_fpn_1x_coco.py": (coco_2017, 800),
    "coco/mask_rcnn_internimage_t_fpn_3x_coco.py": (coco_2017, 800),
    "coco/dino_4scale_internimage_t_1x_coco_layer_wise_lr.py": (coco_2017, 800),
    "coco/dino_4scale_internimage_h_objects365_coco_ss.py": (coco_2017, 1000),
    "crowd_human/cascade_internimage_xl_fpn_3x_crowd_human.py": (crowd_human, 800),
    "openimages/dino_4scale_cbinternimage_h_objects365_openimages_ss.py": (openimages, 1000),
    "voc/dino_4scale_cbinternimage_h_objects365_voc07.py": (voc, 1000),
    "lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py": (lvis, 1000),
}
extra = pytest.mark.skipif(find_spec("lvis") is None, reason="LVIS's own package is an extra; see docs/detection.md")
cases = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[extra] if name.startswith("lvis") else []) for name in CASES]
)


def moved(node, root):
    """The configuration with its data under another folder."""
    if isinstance(node, dict):
        node = {key: moved(value, root) for key, value in node.items()}
        return {**node, "data_root": f"{root}/"} if "data_root" in node else node
    if isinstance(node, list):
        return [moved(item, root) for item in node]
    return str(root / node.split("/", 2)[2]) if isinstance(node, str) and node.startswith("data/") else node


@pytest.fixture
def small_data(tmp_path):
    def prepare(name):
        CASES[name][0](tmp_path)
        whole = Config.fromfile(CONFIGS / name, import_custom_modules=False)
        return Config(moved(whole.to_dict(), tmp_path))

    return prepare


@cases
def test_training_samples_are_images_with_boxes(name, small_data):
    loader = small_data(name).train_dataloader
    data = DATASETS.build(loader.dataset)
    set_random_seed(0)
    sample = data[0]
    boxes = sample["data_samples"].gt_instances
    assert sample["inputs"].shape[0] == 3 and min(sample["inputs"].shape[1:]) > 300
    assert len(boxes) > 0 and (boxes.bboxes.areas > 0).all()
    assert ("masks" in boxes) == ("mask_rcnn" in name)


@cases
def test_perfect_detections_get_full_marks(name, small_data):
    whole = small_data(name)
    data = DATASETS.build(whole.val_dataloader.dataset)
    metric = METRICS.build(whole.val_evaluator)
    metric.dataset_meta = data.metainfo
    for item in (data[index] for index in range(len(data))):
        assert min(item["inputs"].shape[1:]) == CASES[name][1]
        sample = item["data_samples"]
        for part in (sample.gt_instances, sample.ignored_instances):
            part.bboxes = part.bboxes.tensor if isinstance(part.bboxes, HorizontalBoxes) else part.bboxes
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes, labels=truth.labels, scores=truth.bboxes.new_ones(len(truth))
        )
        if "masks" in truth:
            sample.pred_instances.masks = truth.masks.to_tensor(bool, "cpu")
        metric.process({}, [sample.to_dict()])
    marks = metric.evaluate(size=len(data))
    keys = [key for key in marks if key.endswith(("/mAP", "bbox_mAP", "segm_mAP", "bbox_AP"))]
    assert len(keys) == (2 if "mask_rcnn" in name else 1)
    assert all(marks[key] == pytest.approx(1) for key in keys)
    best = whole.default_hooks.checkpoint.save_best
    assert best in marks or (best is None and name.startswith("lvis"))
