"""DINO with CB-InternImage-H, tested at several scales and mirrored. Published: box AP 65.0."""

_base_ = ["./dino_4scale_cbinternimage_h_objects365_coco_ss.py", "../_base_/tta.py"]
