"""DINO with CB-InternImage-H on LVIS v1.0, evaluated on minival, 5000 images. Released: box AP 65.8."""

_base_ = "./dino_4scale_cbinternimage_h_objects365_lvis_val_ss.py"

val_dataloader = dict(dataset=dict(ann_file="annotations/lvis_v1_minival.json"))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=_base_.data_root + "annotations/lvis_v1_minival.json")
test_evaluator = val_evaluator
