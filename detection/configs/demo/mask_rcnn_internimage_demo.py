"""A small Mask R-CNN InternImage on composites of garments (`make demo-detection`), for two CPU cores and some minutes.

Few regions on four levels leave time for more steps.
"""

_base_ = ["../_base_/mask_rcnn_nano.py", "../_base_/schedule_scratch.py"]

data_root = "data/composites/"  # from `python -m demo.compose`
classes = ("T-shirt", "Trouser", "Dress", "Bag", "Ankle-boot")

model = dict(
    neck=dict(num_outs=4),
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32])),  # 16 to 128 pixels
    roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=16)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
_dataset = dict(type="CocoDataset", data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **_dataset,
        ann_file="annotations/train.json",
        data_prefix=dict(img="images/train/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **_dataset,
        ann_file="annotations/val.json",
        data_prefix=dict(img="images/val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file=data_root + "annotations/val.json", metric=["bbox", "segm"])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4)
param_scheduler = [*_base_.param_scheduler[:1], dict(_base_.param_scheduler[1], end=4, T_max=4)]
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=2, save_best=None),
)
randomness = dict(seed=0)
