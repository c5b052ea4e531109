"""A tiny COCO-format data set of coloured rectangles, and configurations of tiny detectors for it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = ("red", "green")
HEIGHT, WIDTH = 64, 96


def make_data(folder: Path, images: int = 4) -> Path:
    """Write `images/*.png` and `instances.json`, two objects in every image; return the folder."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "red"}, {"id": 8, "name": "green"}]}
    for index in range(images):
        pixels = generator.integers(100, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        name = f"{index}.png"
        content["images"].append({"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for color, category in enumerate(content["categories"]):
            x, y = (int(value) for value in generator.integers(2, 30, 2))
            x += 30 * color
            pixels[y : y + 28, x : x + 30] = np.roll([230, 20, 20], color)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": category["id"],
                    "bbox": [x, y, 30, 28],
                    "area": 30 * 28,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 30, y, x + 30, y + 28, x, y + 28]],
                }
            )
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


_COMMON = """
_base_ = [{base!r}, {runtime!r}]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask={mask}),
    dict(type="Resize", scale=({width}, {height}), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=({width}, {height}), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
dataset = dict(
    type="CocoDataset",
    data_root={data!r},
    ann_file="instances.json",
    data_prefix=dict(img="images/"),
    metainfo=dict(classes=("red", "green")),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file={data!r} + "/instances.json", metric="bbox")
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    constructor="CustomLayerDecayOptimizerConstructor",
    paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.9, depths=[1, 1, 1, 1]),
)
backbone = dict(channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8])
randomness = dict(seed=1)
report = False
"""

_MASK_RCNN = """
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        mask_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=2),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=2),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(max_per_img=20)),
)
"""

# With next to no noise on its denoising queries DINO's loss depends on nothing random. Not Adam, which makes steps out
# of gradients that are zero but for rounding.
_DINO = """
optim_wrapper["optimizer"] = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.05)
optim_wrapper["clip_grad"] = dict(max_norm=1.0)
model = dict(
    backbone=backbone,
    neck=dict(in_channels=[32, 64, 128]),
    num_queries=20,
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
    bbox_head=dict(num_classes=2),
    test_cfg=dict(max_per_img=20),
    dn_cfg=dict(label_noise_scale=1e-9, box_noise_scale=1e-9, group_cfg=dict(num_dn_queries=4)),
)
tta_model = dict(type="DetTTAModel", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(96, 64), keep_ratio=True)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [
                dict(
                    type="PackDetInputs",
                    meta_keys=(
                        "img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction"
                    ),
                )
            ],
        ],
    ),
]
"""


def make_config(folder: Path, data: Path, model: str = "mask_rcnn", extra: str = "") -> Path:
    """Write `MODEL.py` (`mask_rcnn` or `dino`), with `extra` lines at its end, and return its path."""
    base = ROOT / "detection/configs/_base_"
    text = _COMMON.format(
        base=str(base / f"{model}.py"),
        runtime=str(base / "default_runtime.py"),
        data=str(data),
        mask=model == "mask_rcnn",
        width=WIDTH,
        height=HEIGHT,
    )
    path = folder / f"{model}.py"
    path.write_text(text + {"mask_rcnn": _MASK_RCNN, "dino": _DINO}[model] + extra)
    return path
