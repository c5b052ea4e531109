"""Mapillary Vistas with the classes of Cityscapes, crops of 512 x 1024; evaluated on Cityscapes."""

_base_ = "./cityscapes.py"

crop_size = (512, 1024)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=66),
    dict(type="MapillaryToCityscapes"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
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
