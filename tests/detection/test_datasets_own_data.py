"""Configurations of detectors for own data: classes, loaders, learning rate, boxes only."""

import json
import shutil

import pytest
from own_formats import ANNOTATIONS, copy_as_val, make, objects
from tiny_coco import CLASSES, make_data

from detection.datasets.own_data import main, own_config
from internimage.errors import UserError
from mm_recipes.detection import CONFIGS

TRAIN, VAL = ("instances.json", "images"), ("val.json", "images")


@pytest.fixture
def own(tmp_path):
    folder = make_data(tmp_path / "own")
    shutil.copy(folder / "instances.json", folder / "val.json")
    return folder


def written(base, own, out):
    from mmengine.config import Config

    text = own_config(CONFIGS / "coco" / base, out, own, TRAIN, VAL)
    out.write_text(text)
    return Config.fromfile(out, import_custom_modules=False)


def rewrite(path, change):
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


@pytest.mark.parametrize(
    "base",
    [
        "mask_rcnn_internimage_t_fpn_1x_coco.py",
        "cascade_internimage_l_fpn_3x_coco.py",
        "dino_4scale_internimage_t_1x_coco_layer_wise_lr.py",
    ],
)
def test_every_head_gets_the_number_of_classes_and_every_loader_the_data(base, own, tmp_path):
    config = written(base, own, tmp_path / "own.py")
    counts = []

    def collect(node):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "num_classes":
                counts.append(value)
            elif isinstance(value, dict | list):
                collect(value)

    collect(config.model.to_dict())
    assert counts and set(counts) == {2}
    for split in ("train", "val", "test"):
        data = config[f"{split}_dataloader"].dataset
        assert tuple(data.metainfo.classes) == CLASSES and data.data_root == f"{own}/"
    assert config.test_evaluator.ann_file == f"{own}/val.json"
    assert config.train_dataloader.dataset.pipeline  # the rest is inherited


def test_the_labels_of_the_data_set_are_those_of_the_names(own, tmp_path):
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules

    register_all_modules()
    config = written("mask_rcnn_internimage_t_fpn_1x_coco.py", own, tmp_path / "own.py")
    data = DATASETS.build(config.train_dataloader.dataset)
    assert data.cat2label == {3: 0, 8: 1} and data.metainfo["classes"] == CLASSES
    assert len(data[0]["data_samples"].gt_instances.masks) == 2


def test_training_and_validation_must_have_the_same_categories(own, tmp_path, capsys):
    rewrite(own / "val.json", lambda coco: coco["categories"].reverse())
    command = [str(CONFIGS / "coco" / "mask_rcnn_internimage_t_fpn_1x_coco.py"), "--data-root", str(own)]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--train", *TRAIN, "--val", *VAL, "--out", str(tmp_path / "own.py")])
    assert "training and validation have different categories" in capsys.readouterr().err


def test_other_formats_are_written_as_coco_beside_the_configuration(tmp_path, capsys):
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    root, content = make(tmp_path / "own", "yolo", images=6)
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    out = tmp_path / "yolo.py"
    base = CONFIGS / "coco/mask_rcnn_internimage_t_fpn_1x_coco.py"
    main([str(base), "--data-root", str(root), "--processes", "4", "--output", str(out)])
    assert "yolo, 2 classes, train 4 images, val 2 images" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    config = Config.fromfile(out, import_custom_modules=False)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(1e-4 * 4 * 2 / 16)
    assert config.auto_scale_lr.base_batch_size == 8 and not config.auto_scale_lr.enable
    assert config.train_dataloader.batch_size == 2 and config.train_pipeline[2].scale == (1333, 800)
    expected = dict(objects(content))
    seen = set()
    for half in ("train", "val"):
        data = DATASETS.build(config[f"{half}_dataloader"].dataset)
        for index in range(len(data)):
            info = data.get_data_info(index)
            name = info["img_path"].rpartition("/")[2]
            seen.add(name)
            found = [(CLASSES[one["bbox_label"]], one["bbox"], one["mask"]) for one in info["instances"]]
            for (label, box, outline), (known, (x, y, w, h), polygon) in zip(found, expected[name], strict=True):
                assert label == known and box == pytest.approx([x, y, x + w, y + h])
                assert outline[0] == pytest.approx(polygon)
    assert seen == {*expected}
    assert (tmp_path / "yolo_converted/val.json").is_file()


def test_a_batch_is_not_larger_than_the_data(own, tmp_path):
    demo = CONFIGS / "demo/mask_rcnn_internimage_demo.py"  # 8 images, and drop_last
    (tmp_path / "own.py").write_text(own_config(demo, tmp_path / "own.py", own, TRAIN, VAL))
    text = (tmp_path / "own.py").read_text()
    assert "batch_size=4" in text and "lr=0.001)" in text


@pytest.mark.parametrize("wrong", [["--val", *VAL], ["--processes", "0"]])
def test_options_that_do_not_go_together_are_refused(wrong, own, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["base.py", "--data-root", str(own), "--output", str(tmp_path / "own.py"), *wrong])
    assert "--processes is at least 1, and --val needs --train" in capsys.readouterr().err


def test_a_configuration_on_other_data_is_refused(own, tmp_path):
    voc = CONFIGS / "voc" / "dino_4scale_cbinternimage_h_objects365_voc07.py"
    with pytest.raises(UserError, match="not on CocoDataset"):
        own_config(voc, tmp_path / "own.py", own, TRAIN, VAL)


# A mini backbone and small images; the recipe's own are 800 x 1333.
SMALL = [
    *("model.backbone.init_cfg=None", "model.backbone.channels=16", "model.backbone.groups=[1,2,4,8]"),
    *("model.backbone.depths=[1,1,1,1]", "optim_wrapper.paramwise_cfg.depths=[1,1,1,1]"),
    *("model.neck.in_channels=[16,32,64,128]", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"),
    *("model.neck.out_channels=32", "model.rpn_head.in_channels=32", "model.rpn_head.feat_channels=32"),
    *(f"model.roi_head.{kind}_roi_extractor.out_channels=32" for kind in ("bbox", "mask")),
    *("model.roi_head.bbox_head.in_channels=32", "model.roi_head.bbox_head.fc_out_channels=64"),
    *("model.roi_head.mask_head.in_channels=32", "model.roi_head.mask_head.conv_out_channels=32"),
    *("model.train_cfg.rpn_proposal.max_per_img=20", "model.test_cfg.rpn.max_per_img=20"),
    "train_dataloader.dataset.pipeline.2.scale=(96,64)",
    *(f"{split}_dataloader.dataset.pipeline.1.scale=(96,64)" for split in ("val", "test")),
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")),
    *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val", "test")),
]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["coco", "voc"])
def test_own_data_train_and_validate_by_the_documented_commands(format, tmp_path, capsys):
    from internimage.mm.runner import DETECTION, test, train

    config, base = tmp_path / "own.py", CONFIGS / "coco" / "mask_rcnn_internimage_t_fpn_1x_coco.py"
    root, _ = make(tmp_path / "own", format)
    options = ["--data-root", str(root), "--train", ANNOTATIONS[format], "images", "--out", str(config)]
    options += ["--val", *copy_as_val(root, format)] if format == "coco" else ["--boxes-only"]
    main([str(base), *options])
    assert f"train with: python detection/train.py {config}" in capsys.readouterr().out
    work = tmp_path / "work"
    small = [option for option in SMALL if format == "coco" or "mask" not in option]
    train(DETECTION, [str(config), "--work-dir", str(work), "--cfg-options", *small])
    log = next(work.glob("*/*.log")).read_text()
    assert "coco/bbox_mAP" in log and ("coco/segm_mAP" in log) is (format == "coco") is ("loss_mask" in log)
    assert all(name in log for name in CLASSES)  # classwise results
    if format == "voc":  # boxes alone are augmented in testing too
        test(DETECTION, [str(work / "epoch_1.pth"), "--tta", "--work-dir", str(work / "test")])
