"""DINO with CB-InternImage-H on OpenImages V6, 601 classes. Released: mAP 74.1."""

_base_ = ["../_base_/dino_cbinternimage_h.py", "../_base_/coco_detection_large.py"]

model = dict(bbox_head=dict(num_classes=601))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=[(2000, 600), (2000, 1200)], keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    *_base_.test_pipeline[:-1],
    dict(
        type="PackDetInputs",
        # The metric reads the annotations and the image-level labels from here.
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            "instances",
            "image_level_labels",
        ),
    ),
]
data_root = "data/OpenImages/"
dataset_type = "OpenImagesDataset"

train_dataloader = dict(
    sampler=dict(_delete_=True, type="ClassAwareSampler", num_sample_class=1),
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/oidv6-train-annotations-bbox.csv",
        data_prefix=dict(img="train/"),
        label_file="annotations/class-descriptions-boxable.csv",
        hierarchy_file="annotations/bbox_labels_600_hierarchy.json",
        meta_file="annotations/train-image-metas.pkl",
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/validation-annotations-bbox.csv",
        data_prefix=dict(img="validation/"),
        label_file="annotations/class-descriptions-boxable.csv",
        hierarchy_file="annotations/bbox_labels_600_hierarchy.json",
        meta_file="annotations/validation-image-metas.pkl",
        image_level_ann_file="annotations/validation-annotations-human-imagelabels-boxable.csv",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type="OpenImagesMetric", iou_thrs=0.5, ioa_thrs=0.5, use_group_of=True, get_supercategory=True
)
test_evaluator = val_evaluator

train_cfg = dict(max_iters=100000, val_interval=2000)
default_hooks = dict(checkpoint=dict(save_best="openimages/mAP"))
load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth"
)
