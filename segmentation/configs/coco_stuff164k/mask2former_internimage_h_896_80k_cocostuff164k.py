"""Mask2Former with InternImage-H on COCO-Stuff 164K, crops of 896 x 896.

Released: mIoU 52.6, 52.8 at several scales.
"""

_base_ = ["../_base_/mask2former_internimage_h_wide.py", "../_base_/coco_stuff164k.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        init_cfg=_base_.imagenet,
    ),
    decode_head=dict(num_classes=171, loss_cls=dict(class_weight=[1.0] * 171 + [0.1])),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=_base_.paramwise_cfg,
)
train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = _base_.param_scheduler_80k
