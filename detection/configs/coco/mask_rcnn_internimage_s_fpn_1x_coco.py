"""Mask R-CNN with InternImage-S, 12 epochs. Released: box AP 47.8, mask AP 43.3."""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        drop_path_rate=0.3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=33, layer_decay_rate=1.0, depths=[4, 4, 21, 4]))
