"""Cityscapes with its coarsely annotated images, crops of 1024 x 1024."""

_base_ = "./cityscapes.py"

crop_size = (1024, 1024)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=19),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadLabelMap", num_classes=19),
    dict(type="PackSegInputs"),
]
# Six scales, each with its mirror image.
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(2048 * ratio), int(1024 * ratio)), keep_ratio=True)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type="ResizeToMultiple", size_divisor=32)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadLabelMap", num_classes=19)],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            dict(
                type="CityscapesDataset",
                data_root="data/cityscapes/",
                data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
                pipeline=train_pipeline,
            ),
            dict(
                type="CityscapesDataset",
                data_root="data/cityscapes/",
                data_prefix=dict(img_path="leftImg8bit/train_extra", seg_map_path="refinement_final/train_extra"),
                pipeline=train_pipeline,
            ),
        ],
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
