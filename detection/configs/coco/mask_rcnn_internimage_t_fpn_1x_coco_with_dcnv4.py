"""Mask R-CNN with InternImage-T, 12 epochs, asking for DCNv4's kernels: the same function and the same weights."""

_base_ = "./mask_rcnn_internimage_t_fpn_1x_coco.py"

model = dict(backbone=dict(use_dcn_v4_op=True))
