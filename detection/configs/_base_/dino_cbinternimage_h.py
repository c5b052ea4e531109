"""DINO on CBInternImage-H, two InternImage-H in a row (Liang et al., 2022), with its schedule.

The released recipes also name `snip_cfg` and `fed_loss_cfg`; the original's code never reads them.
"""

_base_ = ["./dino.py", "./schedule_dino_iters.py"]

model = dict(
    type="CBDINO",
    backbone=dict(
        type="CBInternImage",
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
        out_indices=((0, 1, 2, 3), (1, 2, 3)),
    ),
    neck=dict(in_channels=[640, 1280, 2560]),
    bbox_head=dict(type="CBDINOHead", cb_first_weight=0.5),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=1000)),
)

optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=50, layer_decay_rate=0.94, depths=[6, 6, 32, 6], offset_lr_scale=0.001)
)
