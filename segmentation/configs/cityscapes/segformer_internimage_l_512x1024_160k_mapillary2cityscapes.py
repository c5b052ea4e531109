"""SegFormer with InternImage-L on Cityscapes, crops of 512 x 1024, starting from Mapillary Vistas.

Released: mIoU 85.16, 85.67 at several scales.
"""

_base_ = ["../_base_/segformer.py", "../_base_/cityscapes_extra.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
    ),
    decode_head=dict(in_channels=[160, 320, 640, 1280]),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(val_interval=4000)

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/segformer_internimage_l_512x1024_80k_mapillary.pth"
)
