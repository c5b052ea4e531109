"""FCOS3D (Wang et al., 2021) with InternImage-B on nuScenes, 12 epochs, one camera at a time. Ours, not released."""

_base_ = "./fcos3d_internimage_t_nuscenes.py"

model = dict(
    backbone=dict(
        channels=112,
        depths=[4, 4, 21, 4],
        groups=[7, 14, 28, 56],
        drop_path_rate=0.4,
        post_norm=True,
        init_cfg=dict(checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth"),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=33, depths=[4, 4, 21, 4]))
