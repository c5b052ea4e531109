"""Cascade Mask R-CNN with InternImage-XL, 36 epochs at many scales. Released: box AP 56.2, mask AP 48.8."""

_base_ = "./cascade_internimage_xl_fpn_1x_coco.py"

model = dict(backbone=dict(drop_path_rate=0.6))
train_dataloader = dict(dataset=dict(pipeline=_base_.pipeline_3x))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler_3x
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.9, offset_lr_scale=0.01))
custom_hooks = [*_base_.custom_hooks, _base_.ema_hook]
