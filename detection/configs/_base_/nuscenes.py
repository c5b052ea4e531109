"""nuScenes for one camera at a time, 12 epochs of AdamW with layer-wise learning rates. Needs mmdet3d.

Made for `detection/datasets/nuscenes.py`'s files. The recipe is ours; none was released.
"""

_base_ = "./schedule_1x.py"

default_scope = "mmdet3d"
custom_imports = dict(imports=["internimage.mm", "detection.datasets.nuscenes"], allow_failed_imports=False)

train_pipeline = [
    dict(type="LoadImageFromFileMono3D"),
    dict(
        type="LoadAnnotations3D",
        with_bbox=True,
        with_label=True,
        with_attr_label=True,
        with_bbox_3d=True,
        with_label_3d=True,
        with_bbox_depth=True,
    ),
    # Scales the camera's intrinsics with the image, as mmdet's Resize does not: another scale is safe.
    dict(type="Resize3D", scale=(1600, 900), keep_ratio=True),
    dict(type="RandomFlip3D", flip_ratio_bev_horizontal=0.5),
    dict(
        type="Pack3DDetInputs",
        keys=[
            "img",
            "gt_bboxes",
            "gt_bboxes_labels",
            "attr_labels",
            "gt_bboxes_3d",
            "gt_labels_3d",
            "centers_2d",
            "depths",
        ],
    ),
]
test_pipeline = [
    dict(type="LoadImageFromFileMono3D"),
    dict(type="Resize3D", scale=(1600, 900), keep_ratio=True),
    dict(type="Pack3DDetInputs", keys=["img"]),
]
cameras = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK", "BACK_RIGHT", "BACK_LEFT")
classes = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
data_root = "data/nuscenes/"
dataset = dict(
    type="NuScenesDataset",
    data_root=data_root,
    data_prefix=dict(pts="", **{f"CAM_{camera}": f"samples/CAM_{camera}" for camera in cameras}),
    load_type="mv_image_based",  # every image is a sample
    metainfo=dict(classes=classes, version="v1.0-trainval"),
    modality=dict(use_lidar=False, use_camera=True),
    box_type_3d="Camera",
    use_valid_flag=True,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(ann_file="nuscenes_infos_train.pkl", pipeline=train_pipeline, test_mode=False, **dataset),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="nuscenes_infos_val.pkl", pipeline=test_pipeline, test_mode=True, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="NuScenesMetric", data_root=data_root, ann_file=data_root + "nuscenes_infos_val.pkl", metric="bbox"
)
test_evaluator = val_evaluator

train_cfg = dict(val_interval=4)
default_hooks = dict(
    checkpoint=dict(save_best="NuScenes metric/pred_instances_3d_NuScenes/NDS", rule="greater"),
    visualization=dict(_delete_=True, type="Det3DVisualizationHook"),
)
visualizer = dict(type="Det3DLocalVisualizer")
custom_hooks = [dict(type="mmdet.NumClassCheckHook")]
