"""DINO with InternImage-L, 12 epochs."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection.py", "../_base_/schedule_dino_1x.py"]

model = dict(
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        with_cp=False,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth",
        ),
    ),
    neck=dict(in_channels=[320, 640, 1280]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.9, depths=[5, 5, 22, 5]))
