"""Mask2Former with InternImage-H on Cityscapes, crops of 1024 x 1024, starting from Mapillary Vistas.

Released: mIoU 86.37, 86.96 at several scales.
"""

_base_ = ["../_base_/mask2former_internimage_h.py", "../_base_/cityscapes_extra_1024.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=19, loss_cls=dict(class_weight=[1.0] * 19 + [0.1])),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(512, 512)),
)

optim_wrapper = dict(
    optimizer=dict(lr=1e-05),
    paramwise_cfg=_base_.paramwise_cfg,
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(max_iters=80000, val_interval=2000)
param_scheduler = _base_.param_scheduler_80k

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896x896_80k_mapillary.pth"
)
