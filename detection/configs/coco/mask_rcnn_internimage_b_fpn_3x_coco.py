"""Mask R-CNN with InternImage-B, 36 epochs at many scales. Released: box AP 50.3, mask AP 44.8."""

_base_ = "./mask_rcnn_internimage_b_fpn_1x_coco.py"

train_dataloader = dict(dataset=dict(pipeline=_base_.pipeline_3x))
train_cfg = dict(max_epochs=36)
param_scheduler = _base_.param_scheduler_3x
