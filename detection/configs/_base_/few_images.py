"""What `detection/datasets/own_data.py --few-images SIZE` writes for few images (tens to some hundreds).

The average of the weights is evaluated, and the training ends when it gets no better. An epoch shows each image `times`
times, so that the schedules in epochs remain. `steps` stand between loading and packing; SIZE replaces their sizes.
`batch_size` is small since few images underfit in a short training: many updates help more than large batches.
`lr_factor` multiplies the learning rate that is in proportion to the batch; AdamW needs more than that for a small one.
"""

batch_size, lr_factor, times = 2, 2, 4  # at most 2 images
steps = [
    dict(type="RandomResize", scale=None, ratio_range=(0.6, 1.4), keep_ratio=True),
    dict(type="RandomCrop", crop_size=None, allow_negative_crop=True),
    dict(type="RandomFlip", prob=0.5),
]
hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.005, gamma=200, update_buffers=True, priority=49),
    dict(type="EarlyStoppingHook", monitor="coco/bbox_mAP", min_delta=0.001, patience=5),  # validations
]
