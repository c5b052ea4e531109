"""UperNet with FlashInternImage-T on ADE20K, crops of 512 x 512. Released: mIoU 49.3, 50.3 at several scales."""

_base_ = ["../_base_/upernet.py", "../_base_/ade20k.py", "../_base_/schedule.py"]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
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
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)

# The recipe does not resize to multiples of 32 here.
test_pipeline = [step for step in _base_.test_pipeline if step["type"] != "ResizeToMultiple"]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    paramwise_cfg=dict(num_layers=30, layer_decay_rate=1.0, depths=[4, 4, 18, 4]),
)
