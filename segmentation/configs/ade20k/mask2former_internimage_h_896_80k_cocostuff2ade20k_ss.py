"""Mask2Former with InternImage-H on ADE20K, crops of 896 x 896, starting from COCO-Stuff 164K.

Released: mIoU 62.6, 62.9 at several scales.
"""

_base_ = ["../_base_/mask2former_internimage_h_wide.py", "../_base_/ade20k_896.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])),
)

optim_wrapper = dict(
    optimizer=dict(lr=1e-05),
    paramwise_cfg=_base_.paramwise_cfg,
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(max_iters=80000, val_interval=2000)
param_scheduler = _base_.param_scheduler_80k

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth"
)
