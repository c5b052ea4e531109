"""DINO with CB-InternImage-G, tested at several scales and mirrored. Published: box AP 65.3, without weights."""

_base_ = ["./dino_4scale_cbinternimage_g_objects365_coco_ss.py", "../_base_/tta.py"]
