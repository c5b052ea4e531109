"""DINO with FlashInternImage-S, 12 epochs. Released: box AP 55.3."""

_base_ = ["../_base_/dino.py", "../_base_/coco_detection.py", "../_base_/schedule_dino_1x.py"]

model = dict(
    backbone=dict(
        type="FlashInternImage",
        core_op="DCNv4",
        channels=80,
        depths=[4, 4, 21, 4],
        groups=[5, 10, 20, 40],
        drop_path_rate=0.3,
        dw_kernel_size=3,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[160, 320, 640]),
)

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(num_layers=33, layer_decay_rate=0.9, depths=[4, 4, 21, 4]),
)
auto_scale_lr = dict(base_batch_size=32)
