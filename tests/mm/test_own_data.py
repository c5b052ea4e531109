"""Own data: every format gives the same boxes, masks and classes; what is wrong is named; the split is fair."""

import segmentation.datasets  # noqa: F401 - isort: skip - before mmseg
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS as DETECTION_DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from own_formats import ANNOTATIONS, copy_as_val, label_maps, make, objects, rewrite
from PIL import ExifTags, Image
from pycocotools import mask

import detection.datasets.own_data
from internimage.errors import UserError
from internimage.mm.own_data.loading import label_map, load, to_rle
from internimage.mm.own_data.readers import Problems
from segmentation.datasets import LoadLabelMap, own_data

register_all_modules()

BOXES, OUTLINES = ("coco", "yolo", "voc", "labelme"), ("coco", "yolo", "labelme", "cvat", "label-maps")


def read(root, format, **options):
    return load(root, [(ANNOTATIONS[format], "images")], **options)


def all_scenes(data):
    return sorted([*data.scenes["train"], *data.scenes["val"]], key=lambda scene: scene.image)


@pytest.mark.parametrize("format", BOXES)
def test_every_format_gives_the_same_boxes_masks_and_class_order(format, tmp_path):
    root, content = make(tmp_path / "own", format)
    data = read(root, format, masks=format != "voc")
    assert data.format == format and data.classes == ["red", "green"] and not data.as_it_is
    for scene, (name, expected) in zip(all_scenes(data), objects(content), strict=True):
        assert scene.image == root / "images" / name or scene.image.resolve() == (root / "images" / name).resolve()
        assert scene.size == (96, 64)
        assert [one.name for one in scene.objects] == [label for label, _, _ in expected]
        for one, (_, box, polygon) in zip(scene.objects, expected, strict=True):
            np.testing.assert_allclose(one.box, box, atol=1e-9)
            if format != "voc":
                found = mask.decode(to_rle(one.outline, scene.size))
                np.testing.assert_array_equal(found, mask.decode(to_rle([polygon], scene.size)))


@pytest.mark.parametrize("format", OUTLINES)
def test_every_format_of_outlines_gives_the_same_label_maps(format, tmp_path):
    root, content = make(tmp_path / "own", format)
    data = read(root, format, masks=True, maps=True)
    assert data.classes == ["background", "red", "green"]
    for scene, (_, expected) in zip(all_scenes(data), label_maps(content), strict=True):
        np.testing.assert_array_equal(label_map(scene, data.classes, Problems()), expected)


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_a_given_validation_set_is_taken(format, tmp_path):
    root, _ = make(tmp_path / "own", format)
    data = load(root, [(ANNOTATIONS[format], "images"), copy_as_val(root, format)])
    assert [len(scenes) for scenes in data.scenes.values()] == [4, 4]
    assert data.as_it_is is (format == "coco")


def test_a_data_yaml_is_found_with_its_folders_lists_and_roboflows_paths(tmp_path):
    root, _ = make(tmp_path / "own", "yolo")
    (root / "list.txt").write_text("images/0.png\n./images/1.png\n")
    (root / "data.yaml").write_text("train: ../images\nval: [list.txt]\nnames: [red, green]\nnc: 2\n")
    data = load(root, [])
    assert [len(scenes) for scenes in data.scenes.values()] == [4, 2] and data.classes == ["red", "green"]
    assert all(len(scene.objects) == 2 for scene in all_scenes(data))


def test_vocs_own_lists_of_images_are_read(tmp_path):
    root, _ = make(tmp_path / "own", "voc")
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("0\n2\n")
    (root / "ImageSets/Main/val.txt").write_text("3\n")
    lists = [(f"ImageSets/Main/{half}.txt", "images") for half in ("train", "val")]
    data = load(root, lists)
    assert [[scene.image.name for scene in scenes] for scenes in data.scenes.values()] == [
        ["0.png", "2.png"],
        ["3.png"],
    ]


def test_classes_without_a_list_are_sorted(tmp_path):
    for format, listed in (("voc", "labelmap.txt"), ("labelme", "json/labels.txt")):
        root, _ = make(tmp_path / format, format)
        (root / listed).unlink()
        assert read(root, format).classes == ["green", "red"]


def test_labelmes_groups_are_one_object_and_lines_are_left_out(tmp_path, capsys):
    root, _ = make(tmp_path / "own", "labelme")

    def change(content):
        points = [[10, 10], [20, 10], [10, 20]], [[40, 40], [50, 40], [40, 50]]
        content["shapes"] = [{"label": "red", "shape_type": "polygon", "points": p, "group_id": 7} for p in points]
        line = {"label": "green", "shape_type": "linestrip", "points": [[1, 1], [5, 5], [9, 1]]}
        content["shapes"] += [line, {**content["shapes"][0], "label": "__ignore__"}]

    rewrite(root / "json/0.json", change)
    (red,) = all_scenes(read(root, "labelme"))[0].objects
    assert red.box == [10, 10, 40, 40] and len(red.outline) == 2
    assert "dropped: LabelMe's points, lines, circles and __ignore__: 2, first shape 3 of" in capsys.readouterr().out


# The split


def rare_classes(root, count=20):
    """A data set in which `red` is in three images, `green` in one, and `blue` in all."""
    names, images, annotations = ["red", "green", "blue"], [], []
    (root / "images").mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (32, 32)).save(root / f"images/{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 32, "height": 32})
        for label in [2, *([0] if index in (4, 9, 15) else []), *([1] if index == 12 else [])]:
            box = {"bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
            annotations.append({"id": len(annotations), "image_id": index, "category_id": label, **box})
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_a_fifth_is_split_off_with_every_class_where_possible_and_always_the_same(tmp_path, capsys):
    root = rare_classes(tmp_path / "own")
    first, second = read(root, "coco"), read(root, "coco")
    halves = [
        {half: [scene.image for scene in scenes] for half, scenes in data.scenes.items()} for data in (first, second)
    ]
    assert halves[0] == halves[1]
    train, val = halves[0].values()
    assert len(val) == 4 and len(train) == 16 and not {*train} & {*val}
    present = {half: set().union(*(s.present for s in scenes)) for half, scenes in first.scenes.items()}
    assert present == {"train": {"red", "green", "blue"}, "val": {"red", "blue"}}  # one image of green: for training
    assert "note: classes without example in val: 1, first green" in capsys.readouterr().out


def test_one_image_cannot_be_split(tmp_path):
    root, _ = make(tmp_path / "own", "coco", images=1)
    with pytest.raises(UserError, match="1 images are too few to split a validation set off; give one by --val"):
        read(root, "coco")


# Faults: what is changed in COCO's file, and the line that it gives

STOPS = {
    "images of another size than annotated .*: 1, first .*1.png, 96x64 instead of 48x32": lambda c: c["images"][
        1
    ].update(width=48, height=32),
    "image ids that are not unique: 1, first 0 in": lambda c: c["images"].append(c["images"][0]),
    "annotations of images that are not listed: 2, first image 99, annotation 1": lambda c: [
        one.update(image_id=99) for one in c["annotations"][:2]
    ],
    "objects of classes that are not listed: 1, first category 99, annotation 1": lambda c: c["annotations"][0].update(
        category_id=99
    ),
    "boxes that are not 4 numbers: 1, first annotation 1 of": lambda c: c["annotations"][0].update(
        bbox=[1, 2, 3], segmentation=[]
    ),
    "missing images: 1, first .*lost.png": lambda c: c["images"][2].update(file_name="lost.png"),
    "masks of another size than the image: 1, first annotation 1": lambda c: c["annotations"][0].update(
        segmentation={"size": [32, 48], "counts": "00"}
    ),
    "training sets without any object": lambda c: c["annotations"].clear(),
}
REPAIRED = {
    "repaired: images without width or height: 1, first 1.png": lambda c: c["images"][1].pop("width"),
    "repaired: annotations without area or iscrowd: 2, first annotation 1": lambda c: [
        one.pop("area") for one in c["annotations"][:2]
    ],
    "repaired: annotation ids missing or not unique: 1, first annotation 1": lambda c: c["annotations"][3].update(id=1),
    "repaired: boxes that are not 4 numbers, taken from outlines: 1, first annotation 1": lambda c: c["annotations"][
        0
    ].update(bbox=[1, 2, 3]),
    r"repaired: boxes over the edge of the image, cut off: 1, first \[-5, 1, 30, 20\] of annotation 1": lambda c: c[
        "annotations"
    ][0].update(bbox=[-5, 1, 30, 20]),
    r"dropped: boxes outside the image or under one pixel: 2, first \[200, 1, 30, 20\] of annotation 1": lambda c: [
        one.update(bbox=box) for one, box in zip(c["annotations"][::2], ([200, 1, 30, 20], [3, 3, 0, 9]))
    ],
    "dropped: polygons of fewer than 3 points: 1, first annotation 1": lambda c: c["annotations"][0].update(
        segmentation=[[1, 1, 5, 5]]
    ),
    "note: images without objects: 1, first .*0.png": lambda c: [c["annotations"].pop(0) for _ in range(2)],
}


@pytest.mark.parametrize("line", STOPS)
def test_what_stops_a_training_is_counted_with_the_first_example(line, tmp_path):
    root, _ = make(tmp_path / "own", "coco")
    rewrite(root / "instances.json", STOPS[line])
    with pytest.raises(UserError, match=f"own cannot be trained on; nothing was written\n  stops: {line}"):
        read(root, "coco")


@pytest.mark.parametrize("line", REPAIRED)
def test_what_is_repaired_or_dropped_is_counted_with_the_first_example(line, tmp_path, capsys):
    root, _ = make(tmp_path / "own", "coco")
    val = copy_as_val(root, "coco")
    rewrite(root / "instances.json", REPAIRED[line])
    before = (root / "instances.json").read_bytes()
    data = load(root, [("instances.json", "images"), val], masks=True)
    assert re.search(line, capsys.readouterr().out)
    assert data.as_it_is is line.startswith("note") and (root / "instances.json").read_bytes() == before
    boxes = [one.box for scene in data.scenes["train"] for one in scene.objects]
    assert all(len(box) == 4 and min(box) >= 0 and box[0] + box[2] <= 96 and box[1] + box[3] <= 64 for box in boxes)


def test_all_problems_come_in_one_message_those_that_stop_first(tmp_path):
    root, _ = make(tmp_path / "own", "coco")

    def change(content):
        first, second, third, fourth = content["annotations"][:4]
        first.update(bbox=[200, 1, 30, 20])
        second.pop("area")
        third.update(category_id=99)
        fourth.update(bbox=[1, 2, 3], segmentation=[[1, 2, 3, 4]])
        content["images"][3].update(file_name="lost.png")
        content["annotations"][4:6] = []

    rewrite(root / "instances.json", change)
    with pytest.raises(UserError) as error:
        read(root, "coco")
    words = [line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:]]
    assert words == ["stops"] * 3 + ["repaired"] + ["dropped"] * 2 + ["note"]


def test_unreadable_images_and_rotated_ones_are_found(tmp_path):
    root, _ = make(tmp_path / "own", "coco")
    path = root / "images/0.png"
    path.write_bytes(path.read_bytes()[:400])  # its header is whole
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (96, 64)).save(root / "images/1.png", exif=exif)
    with pytest.raises(UserError) as error:
        read(root, "coco")
    assert "stops: unreadable images: 1, first" in str(error.value)
    assert "images annotated without their EXIF rotation (exiftool -Orientation= removes it): 1" in str(error.value)
    assert "1.png, 64x96 instead of 96x64" in str(error.value)


def test_boxes_have_no_masks_and_label_maps_no_objects(tmp_path):
    root, _ = make(tmp_path / "voc", "voc")
    with pytest.raises(UserError, match="stops: objects without mask .*--boxes-only.*: 8, first object 1 of"):
        read(root, "voc", masks=True)
    for format in ("cvat", "label-maps"):
        root, _ = make(tmp_path / format, format)
        with pytest.raises(
            UserError, match="label maps, without objects; from CVAT, export COCO, Ultralytics YOLO or VOC"
        ):
            read(root, format)


def label_map_faults(root):
    """Break every label map but the last in another way."""
    folder = root / "labels"
    values = np.asarray(Image.open(folder / "0.png")).copy()
    values[:2, :3] = 7
    Image.fromarray(values).save(folder / "0.png")
    Image.fromarray(values[:9]).save(folder / "1.png")
    Image.fromarray(np.stack([values] * 3, 2)).save(folder / "2.png")
    (folder / "3.png").unlink()


def test_faults_of_label_maps_are_counted_with_the_first_example(tmp_path):
    root, _ = make(tmp_path / "own", "label-maps", images=5)
    label_map_faults(root)
    with pytest.raises(UserError) as error:
        read(root, "label-maps", maps=True)
    for line in (
        f"label maps with values beyond the 3 classes: 1, first {root}/labels/0.png, label 7",
        f"label maps of another size than the image: 1, first {root}/labels/1.png, 96x9 instead of 96x64",
        f"label maps that are not an image of one channel of integers: 1, first {root}/labels/2.png",
        f"images without label map: 1, first {root}/images/3.png: it should be {root}/labels/3.png",
    ):
        assert f"stops: {line}" in str(error.value)


def test_two_images_cannot_have_one_label_map(tmp_path):
    root, _ = make(tmp_path / "own", "label-maps")
    Image.open(root / "images/2.png").save(root / "images/2.bmp")
    with pytest.raises(UserError, match="one name with different endings, for one label map: 1, first .*images/2$"):
        read(root, "label-maps", maps=True)


def test_a_colour_that_the_table_lacks_is_named(tmp_path):
    root, _ = make(tmp_path / "own", "cvat")
    table = root / "labelmap.txt"
    table.write_text(table.read_text().replace("51,221,255", "51,221,254"))
    with pytest.raises(UserError, match="beyond the 3 classes: 4, first .*0.png, a colour that labelmap.txt lacks"):
        read(root, "cvat", maps=True)


@pytest.mark.parametrize(
    ("format", "file", "text", "message"),
    [
        (
            "yolo",
            "labels/0.txt",
            "0 0.5 0.5 0.1\n7 0.5 0.5 0.1 0.1\n",
            "lines of neither 4 numbers nor at least 3 points: 1",
        ),
        ("yolo", "labels/0.txt", "7 0.5 0.5 0.1 0.1\n", "classes that are not listed: 1, first class 7, line 1 of"),
        ("yolo", "labels/0.txt", "red 0.5 0.5 0.1 0.1\n", "lines of neither 4 numbers nor at least 3 points: 1"),
        (
            "yolo",
            "labels/0.txt",
            "0 40 30 10 10\n",
            "coordinates in pixels, not as fractions of the image: 1, first line 1",
        ),
        ("yolo", "data.yaml", "names: [red, green]\nkpt_shape: [5, 3]\n", "keypoints .kpt_shape.: export boxes"),
        ("yolo", "data.yaml", "names: [red", "data.yaml is not readable"),
        ("yolo", "data.yaml", "train: images\n", "no class names: write classes.txt"),
        (
            "voc",
            "Annotations/0.xml",
            "<annotation><object>",
            "unreadable annotation files: 1, first .*0.xml .unclosed|no element",
        ),
        ("voc", "Annotations/0.xml", "<annotation><object><name>red</name></object></annotation>", "not 4 numbers: 1"),
        ("labelme", "json/0.json", "{}", "unreadable annotation files: 1, first .*0.json .KeyError"),
        ("coco", "instances.json", "[]", "is not in COCO's format"),
        ("coco", "instances.json", '{"images": [], "annotations": [], "categories": []}', "no categories"),
    ],
)
def test_broken_annotation_files_are_named(format, file, text, message, tmp_path):
    root, _ = make(tmp_path / "own", format)
    (root / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read(root, format)


@pytest.mark.parametrize(
    ("format", "file", "line"),
    [
        ("yolo", "labels/lost.txt", "note: annotations without image: 1, first"),
        ("label-maps", "labels/lost.png", "note: label maps without image: 1, first"),
    ],
)
def test_files_without_a_partner_are_counted(format, file, line, tmp_path, capsys):
    root, _ = make(tmp_path / "own", format)
    shutil.copy((root / file).with_stem("0"), root / file)
    read(root, format, maps=format != "yolo")
    assert f"{line} {root / file}" in capsys.readouterr().out


def test_places_that_are_missing_or_ambiguous_are_named(tmp_path):
    root, _ = make(tmp_path / "own", "yolo")
    with pytest.raises(UserError, match="no annotation file at .*nowhere; give its path relative to --data-root"):
        load(root, [("nowhere", "images")])
    with pytest.raises(UserError, match="no folder at .*nowhere"):
        load(root, [("labels", "nowhere")])
    (root / "labels/0.xml").write_text("<annotation/>")
    with pytest.raises(UserError, match="files of several formats, voc and yolo; choose one by --format"):
        load(root, [("labels", "images")])
    assert load(root, [("labels", "images")], "yolo").format == "yolo"
    (root / "data.yaml").write_text("train: gone/images\nnames: [red, green]\n")
    with pytest.raises(
        UserError, match="data.yaml names .*gone/images, which does not exist; correct its train or path"
    ):
        load(root, [])
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match="no data.yaml with train and names; give --train"):
        load(root, [])


# Segmentation's configurations

UPERNET = "upernet_internimage_t_512_160k_ade20k"


@pytest.mark.parametrize("format", ["cvat", "labelme", "label-maps"])
def test_other_formats_and_a_split_become_label_maps_that_train(format, tmp_path, capsys):
    root, content = make(tmp_path / "own", format, images=6)
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    out = tmp_path / "own.py"
    own_data.main([UPERNET, "--data-root", str(root), "--train", "images", ANNOTATIONS[format], "--output", str(out)])
    assert f"{format}, 3 classes, train 4 images, val 2 images" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    init_default_scope("mmseg")
    config, expected, seen = Config.fromfile(out), dict(label_maps(content)), []
    for half in ("train", "val"):
        data = DATASETS.build(config[f"{half}_dataloader"].dataset)
        assert tuple(data.metainfo["classes"]) == ("background", "red", "green")
        for index in range(len(data)):
            info = data.get_data_info(index)
            seen.append(Path(info["img_path"]).name)
            found = LoadLabelMap(num_classes=3)(info)["gt_seg_map"]
            np.testing.assert_array_equal(found, expected[seen[-1]])
    assert sorted(seen) == sorted(expected)
    steps = config.test_pipeline  # what mmseg's functions read
    assert [step.num_classes for step in steps if step.type == "LoadLabelMap"] == [3]


@pytest.mark.parametrize("format", ["coco", "yolo", "cvat", "label-maps"])
def test_the_configuration_works_from_anywhere_and_moves_with_its_data(format, tmp_path, monkeypatch):
    module, base, order = detection.datasets.own_data, "mask_rcnn_internimage_t_fpn_1x_coco", 1
    if format in ("cvat", "label-maps"):
        module, base, order = own_data, UPERNET, -1
    root, _ = make(tmp_path / "first/own", format, images=6)
    halves = ["--train", *(ANNOTATIONS[format], "images")[::order]]
    if format in ("coco", "label-maps"):  # used as they are
        halves += ["--val", *(copy_as_val(root, format) if format == "coco" else halves[1:])]
    monkeypatch.chdir(root.parent)
    module.main([base, "--data-path", "own", *halves, "--output", "own.py"])
    root.parent.rename(tmp_path / "second")
    monkeypatch.chdir("/")
    config = Config.fromfile(tmp_path / "second/own.py")
    init_default_scope("mmdet" if order == 1 else "mmseg")
    registry = DETECTION_DATASETS if order == 1 else DATASETS
    for half in ("train", "val"):
        data = registry.build(config[f"{half}_dataloader"].dataset)
        assert data[0]["inputs"].shape[0] == 3 and Path(data.get_data_info(0)["img_path"]).is_relative_to(tmp_path)
    assert order == -1 or Path(config.test_evaluator.ann_file).is_file()
