"""FCOS3D (Wang et al., 2021) with InternImage-S on nuScenes, 12 epochs, one camera at a time. Ours, not released."""

_base_ = "./fcos3d_internimage_t_nuscenes.py"

model = dict(
    backbone=dict(
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        drop_path_rate=0.3,
        post_norm=True,
        init_cfg=dict(checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_s_1k_224.pth"),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=33, depths=[4, 4, 21, 4]))
