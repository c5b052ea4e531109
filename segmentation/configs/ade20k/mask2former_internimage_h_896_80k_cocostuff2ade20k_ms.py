"""Mask2Former with InternImage-H on ADE20K, crops of 896 x 896, starting from COCO-Stuff 164K, tested at five scales.

Released: mIoU 62.9.
"""

_base_ = "./mask2former_internimage_h_896_80k_cocostuff2ade20k_ss.py"

tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(4 * side, side), keep_ratio=True) for side in (768, 832, 896, 960, 1024)],
            [dict(type="ResizeToMultiple", size_divisor=32)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadLabelMap", num_classes=150)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
