"""4,000 iterations of AdamW from random weights, with batches of 8 on one device; the rate falls along a cosine."""

_base_ = "./schedule.py"

train_cfg = dict(max_iters=4000, val_interval=400)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3, fused=True),
    paramwise_cfg=dict(num_layers=6, layer_decay_rate=1.0, depths=[1, 1, 3, 1]),  # of the nano backbone
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=4000, T_max=4000, eta_min=1e-5),
]
default_hooks = dict(checkpoint=dict(interval=400))
auto_scale_lr = dict(base_batch_size=8)
