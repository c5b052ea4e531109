"""Cascade R-CNN with InternImage-XL on CrowdHuman (full bodies), 36 epochs at many scales.

The box heads are plain ones of two linear layers, and there is no mask branch. The annotations are CrowdHuman's,
converted to COCO's format by `detection/datasets/crowd_human.py`.
"""

_base_ = "../coco/cascade_internimage_xl_fpn_3x_coco.py"

model = dict(
    backbone=dict(drop_path_rate=0.4),
    roi_head=dict(
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=1,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds),
                reg_class_agnostic=True,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in _base_.stage_stds
        ],
        mask_roi_extractor=None,
        mask_head=None,
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    *_base_.pipeline_3x[2:],
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    _base_.test_pipeline[-1],
]
data_root = "data/CrowdHuman/"
metainfo = dict(classes=("person",), palette=[(220, 20, 60)])

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/annotation_train.json",
        data_prefix=dict(img="Images/"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/annotation_val.json",
        data_prefix=dict(img="Images/"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/annotation_val.json", metric="bbox", classwise=False)
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(_delete_=True, num_layers=39, layer_decay_rate=0.94, depths=[5, 5, 24, 5]),
)
train_cfg = dict(val_interval=100)  # longer than the training: evaluated once, at its end
custom_hooks = _base_.custom_hooks[:1]  # no moving average
