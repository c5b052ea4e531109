"""Mask2Former with InternImage-H on Mapillary Vistas, crops of 896 x 896."""

_base_ = ["../_base_/mask2former_internimage_h.py", "../_base_/mapillary_896.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        init_cfg=_base_.imagenet,
    ),
    decode_head=dict(num_classes=19, loss_cls=dict(class_weight=[1.0] * 19 + [0.1])),
    test_cfg=dict(mode="slide", crop_size=(896, 896), stride=(512, 512)),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=_base_.paramwise_cfg,
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(max_iters=80000, val_interval=2000)
param_scheduler = _base_.param_scheduler_80k
