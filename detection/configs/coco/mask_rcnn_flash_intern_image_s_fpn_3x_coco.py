"""Mask R-CNN with FlashInternImage-S, 36 epochs at many scales. Released: box AP 50.5, mask AP 44.9."""

_base_ = "./mask_rcnn_flash_intern_image_s_fpn_1x_coco.py"

model = dict(backbone=dict(drop_path_rate=0.4))
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=_base_.pipeline_3x))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler_3x
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
