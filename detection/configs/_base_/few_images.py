"""For few images (tens to some hundreds): an average of the weights, early stopping, repeated sampling, scale jitter.

A configuration of your own data adds this file to `_base_` and takes from it, as docs/detection.md shows,

- `few_images.hooks`: the average of the weights is evaluated, and the training ends when it gets no better;
- `few_images.times`: how often an epoch shows each image (`RepeatDataset`), so that the schedule of 12 epochs remains;
- `few_images.ratio_range`: of `RandomResize`, before a `RandomCrop` to the scale.
"""

few_images = dict(
    hooks=[
        dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.005, gamma=200, update_buffers=True, priority=49),
        dict(type="EarlyStoppingHook", monitor="coco/bbox_mAP", min_delta=0.001, patience=5),  # validations
    ],
    times=5,
    ratio_range=(0.6, 1.4),
)
