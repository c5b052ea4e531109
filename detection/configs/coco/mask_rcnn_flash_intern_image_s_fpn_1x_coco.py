"""Mask R-CNN with FlashInternImage-S, 12 epochs. Released: box AP 49.2, mask AP 44.0."""

_base_ = ["../_base_/mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        drop_path_rate=0.3,
        dw_kernel_size=3,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    neck=dict(
        in_channels=[80, 160, 320, 640],
        norm_cfg=dict(type="torchvision.models.convnext.LayerNorm2d"),  # over the channels of each position
    ),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=33, layer_decay_rate=1.0, depths=[4, 4, 21, 4]))
