"""Mask2Former with FlashInternImage-L on ADE20K, crops of 640 x 640. Released: mIoU 56.7."""

_base_ = ["../_base_/mask2former.py", "../_base_/ade20k_640.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.5,
        offset_scale=2.0,
        with_cp=True,
        dw_kernel_size=3,
        dcn_output_bias=True,
        mlp_fc2_bias=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    decode_head=dict(
        in_channels=[160, 320, 640, 1280],
        num_queries=200,
        num_classes=150,
        pixel_decoder=dict(encoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=2048)))),
        loss_cls=dict(class_weight=[1.0] * 150 + [0.1]),
    ),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.0001),
    paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(val_interval=2000)
