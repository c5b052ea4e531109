"""DINO with InternImage-H, fine-tuned from Objects365 for 20000 iterations. Released: box AP 63.4."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection_large.py", "../_base_/schedule_dino_iters.py"]

model = dict(
    backbone=dict(
        channels=320,
        depths=[6, 6, 32, 6],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.5,
        layer_scale=None,
        post_norm=False,
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29],
        center_feature_scale=True,
    ),
    neck=dict(in_channels=[640, 1280, 2560]),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)),
)

optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=50, layer_decay_rate=0.94, depths=[6, 6, 32, 6], offset_lr_scale=0.001)
)
