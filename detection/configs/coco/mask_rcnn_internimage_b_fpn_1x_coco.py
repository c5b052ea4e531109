"""Mask R-CNN with InternImage-B, 12 epochs. Released: box AP 48.8, mask AP 44.0."""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        channels=112,
        depths=[4, 4, 21, 4],
        groups=[7, 14, 28, 56],
        drop_path_rate=0.4,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=33, layer_decay_rate=1.0, depths=[4, 4, 21, 4]))
