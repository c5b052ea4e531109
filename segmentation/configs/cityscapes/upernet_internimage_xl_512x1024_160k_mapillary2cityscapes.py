"""UperNet with InternImage-XL on Cityscapes, crops of 512 x 1024, starting from Mapillary Vistas.

Released: mIoU 86.20, 86.42 at several scales.
"""

_base_ = ["../_base_/upernet.py", "../_base_/cityscapes_extra.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        channels=192,
        depths=[5, 5, 24, 5],
        groups=[12, 24, 48, 96],
        drop_path_rate=0.4,
        offset_scale=2.0,
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=dict(num_layers=39, layer_decay_rate=0.94, depths=[5, 5, 24, 5], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(val_interval=4000)

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/segformer_internimage_xl_512x1024_80k_mapillary.pth"
)
