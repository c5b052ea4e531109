"""A small UperNet InternImage on composites of garments (`make demo-segmentation`), for two cores and some minutes."""

_base_ = ["../_base_/upernet_nano.py", "../_base_/schedule_scratch.py"]

data_root = "data/composites/"  # from `python -m demo.compose`
classes = ("background", "T-shirt", "Trouser", "Dress", "Bag", "Ankle-boot")
palette = [[0, 0, 0], [31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189]]

crop_size = (96, 96)
# Two pixels in three are background: it counts less, and the overlap of the garments (dice) counts by itself.
cross_entropy = dict(type="CrossEntropyLoss", class_weight=[0.7, 1.0, 1.0, 1.0, 1.0, 1.0])
dice = dict(type="DiceLoss", use_sigmoid=False, ignore_index=0)
model = dict(
    # Empty margins are background: mmseg's class weights do not go with ignored pixels.
    data_preprocessor=dict(size=crop_size, seg_pad_val=0),
    decode_head=dict(channels=48, pool_scales=(1, 2, 3), num_classes=6, loss_decode=[cross_entropy, dice]),
    auxiliary_head=dict(num_classes=6, loss_decode=dict(class_weight=cross_entropy["class_weight"])),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=6),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadLabelMap", num_classes=6),
    dict(type="PackSegInputs"),
]
_dataset = dict(
    type="BaseSegDataset", data_root=data_root, img_suffix=".png", metainfo=dict(classes=classes, palette=palette)
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **_dataset,
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=20,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **_dataset,
        data_prefix=dict(img_path="images/val", seg_map_path="labels/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

# Epochs, not iterations: starting again after the last one costs nothing.
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=8, val_interval=1)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=8, T_max=8, eta_min=1e-5, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2, save_best=None),
)
log_processor = dict(by_epoch=True)
randomness = dict(seed=0)
