"""UperNet with InternImage-L on ADE20K, crops of 640 x 640. Released: mIoU 53.9, 54.1 at several scales."""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k_640.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth",
        ),
    ),
    decode_head=dict(in_channels=[160, 320, 640, 1280]),
    auxiliary_head=dict(in_channels=640),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
