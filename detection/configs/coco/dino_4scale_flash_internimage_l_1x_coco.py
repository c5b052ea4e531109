"""DINO with FlashInternImage-L, 12 epochs. Released: box AP 58.8."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection.py", "../_base_/schedule_dino_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        dw_kernel_size=3,
        dcn_output_bias=True,
        mlp_fc2_bias=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    neck=dict(in_channels=[320, 640, 1280]),
)

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
)
