"""12 epochs of AdamW with clipped gradients, as the DINO recipes have it."""

_base_ = "./schedule_1x.py"

optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    _base_.warmup,
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1),
]
