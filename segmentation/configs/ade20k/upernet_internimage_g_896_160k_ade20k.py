"""UperNet with InternImage-G on ADE20K, crops of 896 x 896."""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k_896.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        channels=512,
        depths=[2, 2, 48, 4],
        groups=[16, 32, 64, 128],
        drop_path_rate=0.5,
        layer_scale=None,
        with_cp=True,
        dw_kernel_size=5,
        res_post_norm=False,
        level2_post_norm=True,
        level2_post_norm_block_ids=[5, 11, 17, 23, 29, 35, 41, 47],
        center_feature_scale=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_g_pretrainto22k_384.pth",
        ),
    ),
    decode_head=dict(in_channels=[512, 1024, 2048, 4096]),
    auxiliary_head=dict(in_channels=2048),
)

optim_wrapper = dict(
    optimizer=dict(lr=2e-05),
    paramwise_cfg=dict(num_layers=56, layer_decay_rate=0.95, depths=[2, 2, 48, 4], offset_lr_scale=1.0),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
