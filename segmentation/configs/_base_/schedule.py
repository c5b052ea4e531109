"""AdamW with layer-wise learning rates, which fall linearly to zero; a configuration adds `paramwise_cfg`.

160000 iterations; a configuration may change `train_cfg` and, with it, the end of the second scheduler.
"""

_base_ = "./default_runtime.py"

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="CustomLayerDecayOptimizerConstructor",
)

# As in mmcv 1, the warm-up multiplies the falling rate.
warmup = dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500)
param_scheduler = [
    warmup,
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000),
]
param_scheduler_80k = [
    warmup,
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=80000),
]
param_scheduler_40k = [
    warmup,
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=40000),
]

# 16 images in all; used with --auto-scale-lr only.
auto_scale_lr = dict(enable=False, base_batch_size=16)
