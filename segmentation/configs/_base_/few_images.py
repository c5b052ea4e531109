"""What `segmentation/datasets/own_data.py --few-images SIZE` writes for few images (tens to some hundreds).

The average of the weights is evaluated, and the training ends when it gets no better. Sampling is repeated and scales
are jittered already: the configurations here count iterations and resize by random ratios.
"""

hooks = [
    dict(type="EMAHook", ema_type="mmdet.ExpMomentumEMA", momentum=0.005, gamma=200, update_buffers=True, priority=49),
    dict(type="EarlyStoppingHook", monitor="mIoU", min_delta=0.1, patience=5),  # percent; validations
]
