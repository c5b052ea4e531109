"""DINO with CB-InternImage-G, 6 billion parameters. Published: box AP 65.1; neither recipe nor weights were released.

The settings are those of InternImage-G in the frame of CB-InternImage-H.
"""

_base_ = ["../_base_/dino_cbinternimage_h.py", "../_base_/coco_detection_large.py"]

model = dict(
    backbone=dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        post_norm=True,
        res_post_norm=False,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
    ),
    neck=dict(in_channels=[1024, 2048, 4096]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=56, depths=[2, 2, 48, 4]))
