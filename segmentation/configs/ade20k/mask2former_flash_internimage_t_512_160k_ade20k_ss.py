"""Mask2Former with FlashInternImage-T on ADE20K, crops of 512 x 512. Released: mIoU 51.2."""

_base_ = ["../_base_/mask2former.py", "../_base_/ade20k.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        drop_path_rate=0.2,
        post_norm=False,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150, loss_cls=dict(class_weight=[1.0] * 150 + [0.1])),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.0001),
    paramwise_cfg=dict(num_layers=30, layer_decay_rate=0.9, depths=[4, 4, 18, 4]),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
train_cfg = dict(val_interval=5000)
