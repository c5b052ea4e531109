"""Data sets: their files, classes and labels; the configuration and the class file of own data."""

import segmentation.datasets  # noqa: F401 - isort: skip - before mmseg
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.datasets import CityscapesDataset, MapillaryDataset_v1
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image
from tiny_scenes import make_data

from internimage.errors import UserError
from mm_recipes.segmentation import CONFIGS, config, parts
from segmentation.datasets import LoadLabelMap, MapillaryToCityscapes, NYUDepthV2Dataset
from segmentation.datasets.own_data import main, own_config, read_classes

register_all_modules()


def write(root: Path, dataset: dict, stem: str, suffixes: tuple[str, str], labels: np.ndarray) -> None:
    """One image with its label map where a data-set configuration looks for them."""
    for kind, suffix in zip(("img_path", "seg_map_path"), suffixes):
        path = root / dataset["data_root"] / dataset["data_prefix"][kind] / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = labels if kind == "seg_map_path" else np.zeros((*labels.shape, 3), np.uint8)
        Image.fromarray(array).save(path)
    if dataset.get("ann_file"):
        path = root / dataset["data_root"] / dataset["ann_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{stem}\n")


FILES = {
    "ade20k/upernet_internimage_t_512_160k_ade20k.py": ("ADE_train_1", (".jpg", ".png"), (0, 150), (255, 149)),
    "cityscapes/upernet_internimage_l_512x1024_160k_mapillary2cityscapes.py": (
        "aachen/aachen_1",
        ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
        (255, 18),
        (255, 18),
    ),
    "mapillary/upernet_internimage_l_512x1024_80k_mapillary.py": ("a", (".jpg", ".png"), (13, 65), (0, 255)),
    "coco_stuff10k/mask2former_internimage_h_512_40k_cocostuff164k_to_10k.py": (
        "COCO_1",
        (".jpg", "_labelTrainIds.png"),
        (0, 171),
        (255, 170),
    ),
    "coco_stuff164k/mask2former_internimage_h_896_80k_cocostuff164k.py": (
        "1",
        (".jpg", "_labelTrainIds.png"),
        (0, 170),
        (0, 170),
    ),
    "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py": ("1", (".png", ".png"), (0, 40), (255, 39)),
    "pascal_context/mask2former_internimage_h_480_40k_pascal_context_59.py": (
        "2008_1",
        (".jpg", ".png"),
        (0, 59),
        (255, 58),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_found_and_labels_become_classes(name, tmp_path, monkeypatch):
    init_default_scope("mmseg")
    stem, suffixes, stored, classes = FILES[name]
    for one in parts(config(name)["train_dataloader"]["dataset"]):
        write(tmp_path, one, stem, suffixes, np.array([stored] * 2, dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    dataset = Config({"dataset": config(name)["train_dataloader"]["dataset"]}).dataset
    for one in [dataset, *dataset.get("datasets", [])]:
        kinds = ("LoadImageFromFile", "LoadLabelMap", "MapillaryToCityscapes", "PackSegInputs")
        if "pipeline" in one:
            one.pipeline = [step for step in one.pipeline if step.type in kinds]
    built = DATASETS.build(dataset)
    assert len(built) == len(parts(dataset))
    for item in built:
        assert item["data_samples"].gt_sem_seg.data[0, 0].tolist() == list(classes)


@pytest.mark.parametrize("name", FILES)
def test_classes_and_colours_are_known_without_the_data(name):
    init_default_scope("mmseg")
    dataset = Config({"dataset": config(name)["test_dataloader"]["dataset"]}).dataset
    meta = DATASETS.build({**dataset, "lazy_init": True}).metainfo
    assert len(meta["classes"]) == len(meta["palette"]) <= config(name)["model"]["decode_head"]["num_classes"]


def test_mapillarys_classes_become_those_of_cityscapes():
    table = MapillaryToCityscapes().table
    old, new = MapillaryDataset_v1.METAINFO["classes"], CityscapesDataset.METAINFO["classes"]
    found = {old[label]: new[table[label]] for label in range(66) if table[label] != 255}
    assert found["Lane Marking - General"] == "road" and found["Other Rider"] == "rider"
    assert found["On Rails"] == "train" and found["Traffic Sign (Front)"] == "traffic sign"
    assert "Traffic Sign (Back)" not in found and "Lane Marking - Crosswalk" not in found
    assert set(found.values()) == set(new) and len(found) == 25
    assert (table[66:] == 255).all()


def test_nyu_depth_v2_has_forty_classes_and_colours():
    meta = NYUDepthV2Dataset.METAINFO
    assert len(set(meta["classes"])) == 40 and meta["classes"][::39] == ("wall", "otherprop")
    assert len(meta["palette"]) == 40 and meta["palette"][0] == [120, 120, 120]


def test_custom_classes_are_picked_after_the_check(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    results = {"seg_map_path": str(tmp_path / "a.png"), "reduce_zero_label": False, "seg_fields": []}
    mapped = LoadLabelMap(num_classes=3)(results | {"label_map": {0: 255, 1: 0, 2: 1}, "seg_fields": []})
    assert mapped["gt_seg_map"].tolist() == [[255, 0, 1, 255]]
    with pytest.raises(UserError, match="has label 2 in 1 pixels; labels are 0 to 1 or 255"):
        LoadLabelMap(num_classes=2)(results)
    with pytest.raises(UserError, match="has label 2 in 1 pixels; labels are 1 to 1, 0 or 255"):
        LoadLabelMap(num_classes=1)(results | {"reduce_zero_label": True})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[0, 10**9]], np.int32), "a.png has label 1000000000 in 1 pixels; labels are 0 to 2 or 255"),
        (np.array([[0, 1.5]], np.float32), "a.png has floating-point numbers; a label map has one channel"),
        (np.zeros((1, 2, 3), np.uint8), "a.png has 3 channels; a label map has one channel"),
        (None, "a.png is not a readable label map"),
    ],
    ids=["large", "fractions", "colours", "no image"],
)
def test_a_label_map_that_cannot_hold_classes_is_refused_by_name(labels, message, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    if labels is not None:
        Image.fromarray(labels).save(tmp_path / "a.png", format="TIFF")
    results = {"seg_map_path": str(tmp_path / "a.png"), "reduce_zero_label": False, "seg_fields": []}
    with pytest.raises(UserError, match=message):
        LoadLabelMap(num_classes=3)(results)


def test_a_label_map_of_another_size_than_its_image_is_named(tmp_path):
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "a.png")
    results = {"seg_map_path": str(tmp_path / "a.png"), "reduce_zero_label": False, "seg_fields": []}
    with pytest.raises(UserError, match="a.png is 6x4 pixels, but its image is 12x8: a label map has"):
        LoadLabelMap(num_classes=3)(results | {"ori_shape": (8, 12)})


# Own data

T = CONFIGS / "ade20k/upernet_internimage_t_512_160k_ade20k.py"
FOLDERS = (("images/train", "labels/train"), ("images/val", "labels/val"))


@pytest.mark.parametrize(
    "base",
    [
        T,
        CONFIGS / "nyu_depth_v2/mask2former_internimage_h_480_40k_nyu.py",
        CONFIGS / "demo/upernet_internimage_demo.py",
    ],
)
def test_the_own_configuration_changes_data_and_heads_only(base, tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "own.py"
    (data / "images/train/0.png").rename(data / "images/train/0.JPEG")  # any usual type
    train, val = ([*pair] for pair in FOLDERS)
    main([str(base), "--data-root", str(data), "--train", *train, "--val", *val, "--out", str(out)])
    own, old = Config.fromfile(out), Config.fromfile(base)
    assert own.model.backbone == old.model.backbone
    batch = min(old.train_dataloader.batch_size, 4)  # of four images
    share = batch / old.auto_scale_lr.base_batch_size  # of one process
    assert own.optim_wrapper.optimizer.lr == pytest.approx(old.optim_wrapper.optimizer.lr * share, rel=1e-3)
    assert own.auto_scale_lr.base_batch_size == own.train_dataloader.batch_size == batch
    assert own.optim_wrapper.paramwise_cfg == old.optim_wrapper.paramwise_cfg
    assert own.model.data_preprocessor.seg_pad_val == 255
    assert own.model.decode_head.num_classes == 3
    if "auxiliary_head" in old.model:
        assert own.model.auxiliary_head.num_classes == 3
        losses = [own.model.decode_head.loss_decode, own.model.auxiliary_head.loss_decode]
        for loss in [each for some in losses for each in (some if isinstance(some, list) else [some])]:
            assert not loss.get("class_weight")  # they belong to the classes of the base
    else:
        assert own.model.decode_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
    init_default_scope("mmseg")
    item = DATASETS.build(own.train_dataloader.dataset)[0]
    assert tuple(item["inputs"].shape[1:]) <= tuple(own.crop_size)
    assert set(item["data_samples"].gt_sem_seg.data.unique().tolist()) <= {0, 1, 2, 255}
    test = DATASETS.build(own.test_dataloader.dataset)
    assert len(test) == 2 and not test.reduce_zero_label and test.metainfo["palette"][1] == [230, 20, 20]
    if "tta_pipeline" in old:
        views = Compose(own.tta_pipeline)(test.get_data_info(0))
        assert len(views["inputs"]) == 12


def _too_few_colours(data):
    (data / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "palette": [[0, 0, 0]]}))


def _a_name_twice(data):
    (data / "classes.json").write_text(json.dumps({"classes": ["a", "a"]}))


def _no_json(data):
    (data / "classes.json").write_text("a, b")


def _no_classes(data):
    (data / "classes.json").unlink()


def _no_label_map(data):
    (data / "labels/train/1.png").unlink()


def _no_images(data):
    for path in (data / "images/val").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_too_few_colours, r"palette must have one \[red, green, blue\] \(0 to 255\) for each of 2 classes"),
        (_a_name_twice, "classes must be names, 1 to 255, each of them once"),
        (_no_json, 'must be JSON with "classes"'),
        (_no_classes, "no classes at .*classes.json; write"),
        (
            _no_label_map,
            "stops: images without label map: 1, first .*images/train/1.jpg: it should be .*labels/train/1.png",
        ),
        (_no_images, "images/val has no images"),
    ],
)
def test_mistakes_in_own_data_are_named(change, message, tmp_path):
    data = make_data(tmp_path / "data")
    change(data)
    with pytest.raises(UserError, match=message):
        own_config(T, tmp_path / "own.py", data, *FOLDERS)


def test_other_mistakes_are_named(tmp_path):
    data = make_data(tmp_path / "data")
    with pytest.raises(UserError, match="no folder at .*nowhere"):
        own_config(T, tmp_path / "own.py", data, ("nowhere", "labels/train"), FOLDERS[1])
    with pytest.raises(UserError, match="no configuration at none.py"):
        own_config("none.py", tmp_path / "own.py", data, *FOLDERS)
    several = CONFIGS / "mapillary/upernet_internimage_l_512x1024_80k_mapillary.py"
    with pytest.raises(UserError, match="trains on several data sets"):
        own_config(several, tmp_path / "own.py", data, *FOLDERS)
    assert read_classes(data / "classes.json")["classes"] == ["ground", "red", "green"]
