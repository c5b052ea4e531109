"""Mask R-CNN with a nano InternImage, for data sets that are learned from random weights on a CPU or a laptop's GPU.

As in the released configurations, only small: DCNv3 in every block, FPN, boxes and masks. Without pretrained weights
the neck and heads need batch normalisation (He et al., Rethinking ImageNet Pre-training, 2019).
"""

_base_ = "./mask_rcnn.py"

norm = dict(type="BN")
model = dict(
    backbone=dict(channels=32, depths=[1, 1, 3, 1], groups=[2, 4, 8, 16], drop_path_rate=0.0),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, norm_cfg=norm),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),  # 16 to 256 pixels
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1), finest_scale=28),
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            reg_class_agnostic=True,
            norm_cfg=norm,
        ),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1), finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=32, norm_cfg=norm),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
