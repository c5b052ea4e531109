"""Mask2Former with InternImage-H on NYU Depth V2, crops of 480 x 480. Released: mIoU 67.1, 68.1 at several scales."""

_base_ = ["../_base_/mask2former_internimage_h.py", "../_base_/nyu_depth_v2.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        init_cfg=_base_.imagenet,
    ),
    decode_head=dict(num_classes=40, loss_cls=dict(class_weight=[1.0] * 40 + [0.1])),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=_base_.paramwise_cfg,
)
train_cfg = dict(max_iters=40000, val_interval=2000)
param_scheduler = _base_.param_scheduler_40k
