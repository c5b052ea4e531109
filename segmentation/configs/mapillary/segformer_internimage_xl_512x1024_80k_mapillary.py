"""SegFormer with InternImage-XL on Mapillary Vistas, crops of 512 x 1024."""

_base_ = ["../_base_/segformer.py", "../_base_/mapillary.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        channels=192,
        depths=[5, 5, 24, 5],
        groups=[12, 24, 48, 96],
        drop_path_rate=0.4,
        offset_scale=2.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth",
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=dict(num_layers=39, layer_decay_rate=0.94, depths=[5, 5, 24, 5], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = _base_.param_scheduler_80k
