"""Mask R-CNN with InternImage-T, 12 epochs. Released: box AP 47.2, mask AP 42.5."""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        drop_path_rate=0.2,
        post_norm=False,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=30, layer_decay_rate=1.0, depths=[4, 4, 18, 4]))
