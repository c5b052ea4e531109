"""UperNet with a nano InternImage, for data sets that are learned from random weights on a CPU or a laptop's GPU."""

_base_ = "./upernet.py"

model = dict(
    backbone=dict(channels=32, depths=[1, 1, 3, 1], groups=[2, 4, 8, 16], drop_path_rate=0.0),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=64, dropout_ratio=0.0),
    auxiliary_head=dict(in_channels=128, channels=64),
)
