"""Cityscapes with its coarsely annotated images, for which refined label maps are used (docs/segmentation.md)."""

_base_ = "./cityscapes.py"

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        datasets=[
            dict(
                type="CityscapesDataset",
                data_root="data/cityscapes/",
                data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
                pipeline=_base_.train_pipeline,
            ),
            dict(
                type="CityscapesDataset",
                data_root="data/cityscapes/",
                data_prefix=dict(img_path="leftImg8bit/train_extra", seg_map_path="refinement_final/train_extra"),
                pipeline=_base_.train_pipeline,
            ),
        ],
    )
)
