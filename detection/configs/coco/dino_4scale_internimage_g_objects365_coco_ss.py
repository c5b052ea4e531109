"""DINO with InternImage-G, fine-tuned from Objects365 for 20000 iterations. Released: box AP 64.2."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection_large.py", "../_base_/schedule_dino_iters.py"]

model = dict(
    backbone=dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        drop_path_rate=0.5,
        layer_scale=None,
        dw_kernel_size=5,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
        center_feature_scale=True,
    ),
    neck=dict(in_channels=[1024, 2048, 4096]),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)),
)

optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=56, layer_decay_rate=0.94, depths=[2, 2, 48, 4], offset_lr_scale=0.001)
)
