"""A tiny data set of coloured rectangles with label maps, in the layout for own data, and a tiny segmentor for it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from segmentation.datasets.own_data import own_config

ROOT = Path(__file__).parents[2]
CLASSES = ["ground", "red", "green"]
PALETTE = [[120, 120, 120], [230, 20, 20], [20, 230, 20]]
HEIGHT, WIDTH = 48, 72


def make_data(folder: Path, train: int = 4, val: int = 2) -> Path:
    """Write `classes.json`, `images/{train,val}` and `labels/{train,val}`; return the folder."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES, "palette": PALETTE}))
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(100, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            labels[:3] = 255
            for label in (1, 2):
                y, x = int(generator.integers(3, 20)), int(generator.integers(0, 15)) + 35 * (label - 1)
                pixels[y : y + 24, x : x + 20] = PALETTE[label]
                labels[y : y + 24, x : x + 20] = label
            suffix = ".jpg" if index % 2 else ".png"
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}{suffix}", quality=95)
            Image.fromarray(labels).save(folder / "labels" / split / f"{index}.png")
    return folder


_TINY = """
_base_ = "own.py"

crop_size = (48, 64)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=3),
    dict(type="Resize", scale=(64, 48), keep_ratio=False),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(72, 48), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadLabelMap", num_classes=3),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    num_workers=0,
    sampler=dict(shuffle=False),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(size, size), keep_ratio=True) for size in (64, 80)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadLabelMap", num_classes=3)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
# Nothing random and nothing that depends on how a batch is spread over processes.
norm_cfg = dict(_delete_=True, type="GN", num_groups=4)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        channels=16, depths=[1, 1, 1, 1], groups=[1, 2, 4, 8], drop_path_rate=0.0, init_cfg=dict(_delete_=True)
    ),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=32, dropout_ratio=0.0, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=16, dropout_ratio=0.0, norm_cfg=norm_cfg),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-2), paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.9, depths=[1, 1, 1, 1])
)
param_scheduler = [dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=120)]
train_cfg = dict(max_iters=80, val_interval=80)
default_hooks = dict(checkpoint=dict(interval=80), logger=dict(interval=10))
randomness = dict(seed=1)
report = False
"""


def make_config(folder: Path, data: Path) -> Path:
    """Write `own.py`, an UperNet on the data as the converter makes it, and `tiny.py`, which shrinks it."""
    base = ROOT / "segmentation/configs/ade20k/upernet_internimage_t_512_160k_ade20k.py"
    folders = (("images/train", "labels/train"), ("images/val", "labels/val"))
    (folder / "own.py").write_text(own_config(base, folder / "own.py", data, *folders))
    path = folder / "tiny.py"
    path.write_text(_TINY)
    return path
