"""DINO with InternImage-T, 12 epochs. Released: box AP 53.9."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection.py", "../_base_/schedule_dino_1x.py"]

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
    neck=dict(in_channels=[128, 256, 512]),
    test_cfg=dict(max_per_img=100),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=30, layer_decay_rate=0.9, depths=[4, 4, 18, 4]))
