"""12 epochs of AdamW with layer-wise learning rates; a configuration adds `paramwise_cfg` for its backbone.

The `_3x` variables are for the configurations that train 36 epochs.
"""

_base_ = "./default_runtime.py"

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    constructor="CustomLayerDecayOptimizerConstructor",
)

warmup = dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500)
param_scheduler = [
    warmup,
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
param_scheduler_3x = [
    warmup,
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]

# 8 GPUs with 2 images each; used with --auto-scale-lr only.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# Averages the weights; for the long schedules of large models, which add it to `custom_hooks`.
ema_hook = dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=1e-4, gamma=2000, update_buffers=True, priority=49)
