"""DINO with CB-InternImage-H, fine-tuned from Objects365 for 20000 iterations. Released: box AP 64.5."""

_base_ = ["../_base_/dino_cbinternimage_h.py", "../_base_/coco_detection_large.py"]

load_from = (
    "https://huggingface.co/OpenGVLab/InternImage/resolve/main/dino_4scale_cbinternimage_h_objects365_80classes.pth"
)
