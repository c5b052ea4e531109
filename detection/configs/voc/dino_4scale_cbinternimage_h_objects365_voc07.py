"""DINO with CB-InternImage-H on VOC 2007 and 2012, evaluated on VOC 2007 test (11 points). Released: mAP 94.0."""

_base_ = ["../_base_/dino_cbinternimage_h.py", "../_base_/coco_detection_large.py"]

model = dict(bbox_head=dict(num_classes=20))

# The original writes a scale range of 600 to 1200 here but trains with its base configuration's fixed scale: the
# wrapped data set has a pipeline of its own, and the outer one is not used.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1000, 600), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
data_root = "data/VOCdevkit/"

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=3,
        dataset=dict(
            type="ConcatDataset",
            ignore_keys=["dataset_type"],  # the two years differ in it
            datasets=[
                dict(
                    type="VOCDataset",
                    data_root=data_root,
                    ann_file=f"VOC{year}/ImageSets/Main/trainval.txt",
                    data_prefix=dict(sub_data_root=f"VOC{year}/"),
                    filter_cfg=dict(filter_empty_gt=True, min_size=32),
                    pipeline=train_pipeline,
                )
                for year in (2007, 2012)
            ],
        ),
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="VOCDataset",
        data_root=data_root,
        ann_file="VOC2007/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="VOCMetric", metric="mAP", eval_mode="11points")
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=5e-5))
train_cfg = dict(val_interval=500)
default_hooks = dict(checkpoint=dict(save_best="pascal_voc/mAP"))
load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_20classes.pth"
)
