"""Mask2Former with FlashInternImage-S on ADE20K, crops of 640 x 640, attention weights without softmax."""

_base_ = ["../_base_/mask2former.py", "../_base_/ade20k_640.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        drop_path_rate=0.3,
        dw_kernel_size=3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    decode_head=dict(
        in_channels=[80, 160, 320, 640],
        num_queries=200,
        num_classes=150,
        pixel_decoder=dict(
            type="mmdet.UnnormalizedPixelDecoder", encoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=2048)))
        ),
        loss_cls=dict(class_weight=[1.0] * 150 + [0.1]),
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.0001),
    paramwise_cfg=dict(num_layers=33, layer_decay_rate=1.0, depths=[4, 4, 21, 4]),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(val_interval=5000)
