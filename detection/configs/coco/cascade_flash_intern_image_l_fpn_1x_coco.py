"""Cascade Mask R-CNN with FlashInternImage-L, 12 epochs. Released: box AP 55.6, mask AP 48.2."""

_base_ = ["../_base_/cascade_mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        dw_kernel_size=3,
        dcn_output_bias=True,
        mlp_fc2_bias=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_l_22k_384.pth",
        ),
    ),
    neck=dict(
        in_channels=[160, 320, 640, 1280],
        norm_cfg=dict(type="torchvision.models.convnext.LayerNorm2d"),  # over the channels of each position
    ),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5]))
