"""Mask R-CNN with InternImage-S, 36 epochs at many scales. Released: box AP 49.7, mask AP 44.5."""

_base_ = "./mask_rcnn_internimage_s_fpn_1x_coco.py"

train_dataloader = dict(dataset=dict(pipeline=_base_.pipeline_3x))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler_3x
