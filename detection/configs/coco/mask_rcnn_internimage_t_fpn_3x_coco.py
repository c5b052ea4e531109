"""Mask R-CNN with InternImage-T, 36 epochs at many scales. Released: box AP 49.1, mask AP 43.7."""

_base_ = "./mask_rcnn_internimage_t_fpn_1x_coco.py"

train_dataloader = dict(dataset=dict(pipeline=_base_.pipeline_3x))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler_3x
