"""CrowdHuman's and OpenImages' converters, and what mmdet reads from their output."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
from PIL import ExifTags, Image
from tiny_layouts import bdd_labels

from detection.datasets import bdd100k
from detection.datasets.crowd_human import main, to_coco
from detection.datasets.openimages import image_metas
from internimage.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "detection" / "datasets"
ADULT = {
    "tag": "person",
    "fbox": [-5, 10, 40, 90],
    "vbox": [0, 10, 30, 50],
    "hbox": [10, 10, 8, 8],
    "head_attr": {"ignore": 0},
    "extra": {"box_id": 0, "occ": 1},
}
IGNORED = ADULT | {"fbox": [50, 10, 20, 60], "extra": {"ignore": 1}}
CROWD = {"tag": "mask", "fbox": [100, 0, 30, 30], "vbox": [100, 0, 30, 30], "extra": {"ignore": 1}}


def write_crowd(root):
    (root / "Images").mkdir()
    people = {"273271,a": [ADULT, IGNORED, CROWD], "273271,b": [ADULT]}
    for number, name in enumerate(people):
        Image.new("RGB", (160, 100 + number)).save(root / "Images" / f"{name}.jpg")
    lines = [json.dumps({"ID": name, "gtboxes": boxes}) for name, boxes in people.items()]
    (root / "annotation_val.odgt").write_text("\n".join(lines) + "\n")
    return root / "annotation_val.odgt", root / "Images"


def test_crowd_human_becomes_coco_with_full_bodies_and_regions_to_ignore(tmp_path):
    coco = to_coco(*write_crowd(tmp_path))
    assert coco["categories"] == [{"id": 1, "name": "person"}]
    assert coco["images"][1] == {"id": 2, "file_name": "273271,b.jpg", "width": 160, "height": 101}
    assert [one["bbox"] for one in coco["annotations"]] == [
        ADULT["fbox"],
        IGNORED["fbox"],
        CROWD["fbox"],
        ADULT["fbox"],
    ]
    assert [one["iscrowd"] for one in coco["annotations"]] == [0, 1, 1, 0]
    assert [one["image_id"] for one in coco["annotations"]] == [1, 1, 1, 2]
    assert [one["id"] for one in coco["annotations"]] == [1, 2, 3, 4]


def test_crowd_human_heads_and_visible_parts_can_be_chosen(tmp_path):
    files = write_crowd(tmp_path)
    heads = to_coco(*files, box="head")["annotations"]
    assert [one["bbox"] for one in heads] == 3 * [ADULT["hbox"]]  # regions have none
    assert [one["iscrowd"] for one in heads] == [0, 0, 0]  # a head is ignored by its own mark
    assert to_coco(*files, box="visible")["annotations"][0]["bbox"] == ADULT["vbox"]


def test_crowd_human_says_what_is_missing(tmp_path, capsys):
    odgt, images = write_crowd(tmp_path)
    with pytest.raises(UserError, match="no annotation file"):
        to_coco(tmp_path / "other.odgt", images)
    with pytest.raises(UserError, match="line 1 of .* needs"):
        to_coco(odgt, tmp_path)
    odgt.write_text('{"ID": "a"}\n')
    with pytest.raises(SystemExit, match="2"):
        main([str(odgt), str(images), str(tmp_path / "out.json")])
    assert "not CrowdHuman's format (KeyError('gtboxes'))" in capsys.readouterr().err


def test_the_converter_runs_as_a_script_and_mmdet_reads_its_output(tmp_path):
    odgt, images = write_crowd(tmp_path)
    out = tmp_path / "annotations" / "annotation_val.json"
    command = [sys.executable, str(SCRIPTS / "crowd_human.py"), str(odgt), str(images), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "2 images, 2 people, 2 regions to ignore" in result.stdout

    from mmdet.datasets import CocoDataset

    data = CocoDataset(
        ann_file=str(out), data_prefix={"img": str(images)}, metainfo={"classes": ("person",)}, test_mode=True
    )
    first = data.get_data_info(0)
    assert [one["ignore_flag"] for one in first["instances"]] == [0, 1, 1]
    assert first["instances"][0]["bbox"] == [-5, 10, 35, 100]


def save_turned(path, size):
    """A picture of this size when it is upright, stored lying down as cameras do."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", size[::-1]).save(path, exif=exif)


def test_sizes_are_those_of_the_upright_image_as_it_is_loaded(tmp_path):
    odgt, images = write_crowd(tmp_path)
    save_turned(images / "273271,b.jpg", (160, 101))
    assert mmcv.imread(str(images / "273271,b.jpg")).shape == (101, 160, 3)
    assert (to_coco(odgt, images)["images"][1]["width"], to_coco(odgt, images)["images"][1]["height"]) == (160, 101)


def test_openimages_sizes_follow_the_order_of_the_annotations(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "b.jpg")
    save_turned(tmp_path / "a.jpg", (32, 80))
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,Occluded,Truncated,GroupOf,Depiction,Inside"
    boxes = (("b", "0,0.5,0,1"), ("b", "0,1,0,1"), ("a", "0,1,0,1"))
    rows = [f"{name},x,/m/1,1,{box},0,0,0,0,0" for name, box in boxes]
    annotations = tmp_path / "boxes.csv"
    annotations.write_text("\n".join([header, *rows]) + "\n")
    metas = image_metas(annotations, tmp_path)
    assert metas == [
        {"filename": "b.jpg", "ori_shape": (48, 64, 3)},
        {"filename": "a.jpg", "ori_shape": (80, 32, 3)},
    ]
    (tmp_path / "metas.pkl").write_bytes(pickle.dumps(metas))
    (tmp_path / "labels.csv").write_text("/m/1,Thing\n")
    (tmp_path / "hierarchy.json").write_text(json.dumps({"LabelName": "/m/0", "Subcategory": [{"LabelName": "/m/1"}]}))

    from mmdet.datasets import OpenImagesDataset

    files = {"label_file": "labels.csv", "meta_file": "metas.pkl", "hierarchy_file": "hierarchy.json"}
    data = OpenImagesDataset(data_root=str(tmp_path), ann_file="boxes.csv", data_prefix={"img": ""}, **files)
    assert data.get_data_info(0)["instances"][0]["bbox"] == [0, 0, 32, 48]
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="no image at .*a.jpg"):
        image_metas(annotations, tmp_path)


def test_bdd100k_becomes_coco_with_crowds_and_other_classes_to_ignore(tmp_path, capsys):
    bdd_labels(tmp_path)
    labels, images = tmp_path / "labels/det_20/det_val.json", tmp_path / "images/100k/val"
    coco = bdd100k.to_coco(labels, images)
    assert [one["name"] for one in coco["categories"]] == list(bdd100k.CLASSES) and len(bdd100k.CLASSES) == 10
    assert coco["images"][1] == {"id": 2, "file_name": "1.png", "width": 96, "height": 64}
    first = [one for one in coco["annotations"] if one["image_id"] == 1]
    assert [(one["category_id"], one["iscrowd"]) for one in first] == [(3, 0), (9, 0), (4, 1), (1, 1)]
    assert first[0]["bbox"][2:] == [30, 28] and first[2]["bbox"] == [0, 0, 9.5, 8] and first[2]["area"] == 76
    assert not [one for one in coco["annotations"] if one["image_id"] == 4]  # a frame without labels
    bdd100k.main([str(labels), str(images), str(tmp_path / "new/det_val.json")])
    assert "4 images, 6 objects, 6 regions to ignore" in capsys.readouterr().out
    box = '{"x1": 0, "y1": 0, "x2": 1, "y2": 1}'
    for text, message in (
        ('[{"name": "0.png", "labels": [{"category": "car", "box2d": {"x1": 0}}]}]', "KeyError: 'y1'"),
        (f'[{{"name": "0.png", "labels": [{{"category": "boat", "box2d": {box}}}]}}]', "KeyError: 'boat'"),
        ('[{"name": "9.png"}]', "9.png"),
        ("{", "are not BDD100K's .JSONDecodeError"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=message):
            bdd100k.to_coco(labels, images)
    with pytest.raises(UserError, match="No such file"):
        bdd100k.to_coco(tmp_path / "absent.json", images)
