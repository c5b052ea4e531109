"""Cascade R-CNN with InternImage-L on BDD100K, 12 epochs: COCO's recipe without masks. Ours; none was released."""

_base_ = ["../_base_/cascade_mask_rcnn.py", "../_base_/bdd100k_detection.py", "../_base_/schedule_1x.py"]

model = dict(
    backbone=dict(
        channels=160,
        depths=[5, 5, 22, 5],
        groups=[10, 20, 40, 80],
        drop_path_rate=0.4,
        offset_scale=2.0,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_l_22k_192to384.pth",
        ),
    ),
    neck=dict(in_channels=[160, 320, 640, 1280]),
    roi_head=dict(
        bbox_head=[dict(head, num_classes=10) for head in _base_.model.roi_head.bbox_head],
        mask_roi_extractor=None,
        mask_head=None,
    ),
)

optim_wrapper = dict(paramwise_cfg=dict(num_layers=37, layer_decay_rate=0.94, depths=[5, 5, 22, 5]))
