"""BDD100K's ten classes, converted by `detection/datasets/bdd100k.py`, with the scales and crops of COCO's boxes."""

_base_ = "./coco_detection.py"

data_root = "data/bdd100k/"
metainfo = dict(
    classes=(
        *("pedestrian", "rider", "car", "truck", "bus", "train"),
        *("motorcycle", "bicycle", "traffic light", "traffic sign"),
    )
)

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/det_train.json",
        data_prefix=dict(img="images/100k/train/"),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/det_val.json",
        data_prefix=dict(img="images/100k/val/"),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/det_val.json")
test_evaluator = val_evaluator
