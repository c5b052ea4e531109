"""Cascade Mask R-CNN with InternImage-XL, 12 epochs. Released: box AP 55.3, mask AP 48.1."""

_base_ = ["../_base_/cascade_mask_rcnn.py", "../_base_/coco_instance.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        channels=192,
        depths=[5, 5, 24, 5],
        groups=[12, 24, 48, 96],
        drop_path_rate=0.4,
        offset_scale=2.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_xl_22k_192to384.pth",
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=39, layer_decay_rate=0.94, depths=[5, 5, 24, 5]))
