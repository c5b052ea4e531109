"""Mask2Former with InternImage-H, 256 wide; a configuration adds the classes."""

_base_ = "./mask2former.py"

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
    decode_head=dict(in_channels=[320, 640, 1280, 2560]),
)

# For the configurations that start from ImageNet and not from another segmentor.
imagenet = dict(
    type="Pretrained",
    checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_h_jointto22k_384.pth",
)
paramwise_cfg = dict(num_layers=50, layer_decay_rate=0.95, depths=[6, 6, 32, 6], offset_lr_scale=1.0)
