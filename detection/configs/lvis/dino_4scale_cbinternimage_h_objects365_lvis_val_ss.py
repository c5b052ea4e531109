"""DINO with CB-InternImage-H on LVIS v1.0, evaluated on val. Released: box AP 62.3."""

_base_ = ["../_base_/dino_cbinternimage_h.py", "../_base_/coco_detection_large.py"]

custom_imports = dict(imports=["internimage.mm", "detection.datasets"], allow_failed_imports=False)

model = dict(bbox_head=dict(num_classes=1203))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=[(2000, 600), (2000, 1200)], keep_ratio=True),
    dict(type="PackDetInputs"),
]
data_root = "data/lvis_v1/"

train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type="ClassBalancedDataset",
        oversample_thr=1e-3,
        dataset=dict(
            type="LVISV1Dataset",
            data_root=data_root,
            ann_file="annotations/lvis_v1_train.json",
            data_prefix=dict(img=""),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type="LVISV1Dataset",
        data_root=data_root,
        ann_file="annotations/lvis_v1_val.json",
        data_prefix=dict(img=""),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="LVISMetric", ann_file=data_root + "annotations/lvis_v1_val.json", metric=["bbox"], classwise=True
)
test_evaluator = val_evaluator

train_cfg = dict(max_iters=80000, val_interval=500)
default_hooks = dict(checkpoint=dict(save_best=None))
load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth"
)
