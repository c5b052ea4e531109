"""UperNet with a nano InternImage, crops of 512 x 512, 4,000 iterations. Ours; never trained on ADE20K itself."""

_base_ = ["../_base_/upernet_nano.py", "../_base_/ade20k.py", "../_base_/schedule_scratch.py"]

model = dict(data_preprocessor=dict(size=_base_.crop_size))
train_dataloader = dict(batch_size=8)
