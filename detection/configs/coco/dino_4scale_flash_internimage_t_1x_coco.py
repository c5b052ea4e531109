"""DINO with FlashInternImage-T, 12 epochs. Released: box AP 54.7."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection.py", "../_base_/schedule_dino_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=64,
        depths=[4, 4, 18, 4],
        groups=[4, 8, 16, 32],
        drop_path_rate=0.2,
        post_norm=False,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(num_layers=30, layer_decay_rate=0.9, depths=[4, 4, 18, 4]),
)
auto_scale_lr = dict(base_batch_size=32)
