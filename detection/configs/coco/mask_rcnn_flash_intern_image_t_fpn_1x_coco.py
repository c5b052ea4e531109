"""Mask R-CNN with FlashInternImage-T, 12 epochs. Released: box AP 48.0, mask AP 43.1."""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        drop_path_rate=0.2,
        post_norm=False,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    neck=dict(
        in_channels=[64, 128, 256, 512],
        norm_cfg=dict(type="torchvision.models.convnext.LayerNorm2d"),  # over the channels of each position
    ),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=30, layer_decay_rate=1.0, depths=[4, 4, 18, 4]))
