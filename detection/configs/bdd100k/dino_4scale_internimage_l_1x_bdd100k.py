"""DINO with InternImage-L on BDD100K, 12 epochs: COCO's recipe. Ours; the original published 38.8 AP and no recipe."""

_base_ = ["../_base_/dino.py", "../_base_/bdd100k_detection.py", "../_base_/schedule_dino_1x.py"]

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
    bbox_head=dict(num_classes=10),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.9, depths=[5, 5, 22, 5]))
