"""A constant learning rate after the warm-up, counted in iterations: fine-tuning from Objects365."""

_base_ = "./default_runtime.py"

train_cfg = dict(type="IterBasedTrainLoop", max_iters=20000, val_interval=200)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    constructor="CustomLayerDecayOptimizerConstructor",
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500)]

# A checkpoint holds the optimizer too, 12 bytes per parameter: keep few.
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2000, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)

# The recipes give one image per GPU and not the number of GPUs. 64 images make 20000 iterations 11 epochs of COCO.
auto_scale_lr = dict(enable=False, base_batch_size=64)
