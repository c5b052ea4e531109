"""DINO with CB-InternImage-H on LVIS v1.0 val, tested at several scales and mirrored. Published: box AP 63.2."""

_base_ = ["./dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py", "../_base_/tta.py"]
