"""Mask R-CNN with a nano InternImage, 12 epochs of images of up to 512 x 512. Ours; never trained on COCO itself."""

_base_ = ["../_base_/mask_rcnn_nano.py", "../_base_/coco_instance.py", "../_base_/schedule_scratch.py"]

scale = (512, 512)
train_pipeline = [dict(step, scale=scale) if step["type"] == "Resize" else step for step in _base_.train_pipeline]
test_pipeline = [dict(step, scale=scale) if step["type"] == "Resize" else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
