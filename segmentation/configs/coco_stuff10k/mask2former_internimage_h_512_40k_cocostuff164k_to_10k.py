"""Mask2Former with InternImage-H on COCO-Stuff 10K, crops of 512 x 512, starting from COCO-Stuff 164K.

Released: mIoU 59.2, 59.6 at several scales.
"""

_base_ = ["../_base_/mask2former_internimage_h_wide.py", "../_base_/coco_stuff10k.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=171, loss_cls=dict(class_weight=[1.0] * 171 + [0.1])),
)

optim_wrapper = dict(
    optimizer=dict(lr=1e-05),
    paramwise_cfg=_base_.paramwise_cfg,
)
train_cfg = dict(max_iters=40000, val_interval=2000)
param_scheduler = _base_.param_scheduler_40k

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/mask2former_internimage_h_896_80k_cocostuff164k.pth"
)
