"""For few images: the average of the weights is evaluated, and the training ends when it gets no better.

Add this file to `_base_` of a configuration of your own data. Sampling is repeated and scales are jittered without it:
the configurations of ADE20K count iterations and resize by random ratios.
"""

custom_hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.005, gamma=200, update_buffers=True, priority=49),
    dict(type="EarlyStoppingHook", monitor="mIoU", min_delta=0.1, patience=5),  # percent; validations
]
