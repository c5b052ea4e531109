"""Mapillary Vistas with the classes of Cityscapes, crops of 896 x 896; evaluated on Cityscapes."""

_base_ = "./cityscapes.py"

crop_size = (896, 896)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=66),
    dict(type="MapillaryToCityscapes"),
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
                type="MapillaryDataset",
                data_root="data/Mapillary/",
                data_prefix=dict(img_path="training/images", seg_map_path="training/labels"),
                pipeline=train_pipeline,
            ),
            dict(
                type="MapillaryDataset",
                data_root="data/Mapillary/",
                data_prefix=dict(img_path="validation/images", seg_map_path="validation/labels"),
                pipeline=train_pipeline,
            ),
        ],
    )
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
