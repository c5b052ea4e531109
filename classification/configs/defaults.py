"""The configuration's keys: default, type, permitted values.

Names and defaults are those of the original project (OpenGVLab InternImage, MIT licence). Eight keys are new:
`DATA.SKIP_BAD_IMAGES`, `SAVE_CKPT_NUM` and `LAUNCHER`, which mirror command-line options, `AMP`, `TF32`, `COMPILE`,
`DATA.TIMEOUT`, and `AUG.CROP_SCALE`.
"""

__all__ = ["AT_LEAST", "CHOICES", "CUDA_GRAPH_MODES", "DEFAULTS", "OPTIONAL"]

_LEVELS = {
    "DEPTHS": [4, 4, 18, 4],
    "GROUPS": [4, 8, 16, 32],
    "CHANNELS": 64,
    "LAYER_SCALE": None,
    "OFFSET_SCALE": 1.0,
    "MLP_RATIO": 4.0,
    "POST_NORM": False,
    "RES_POST_NORM": False,
    "DW_KERNEL_SIZE": None,  # of the depthwise convolution in the operator's layer; None: 3
    "USE_CLIP_PROJECTOR": False,
    "LEVEL2_POST_NORM": False,
    "LEVEL2_POST_NORM_BLOCK_IDS": None,
    "CENTER_FEATURE_SCALE": False,
}

DEFAULTS = {
    "BASE": [""],  # YAML files to start from, relative to the file that names them
    "DATA": {
        "BATCH_SIZE": 128,  # per process
        "DATA_PATH": "",
        "DATASET": "imagenet",  # imagenet, imagenet22K, inat18, or folder: any ImageFolder
        "IMG_SIZE": 224,
        "INTERPOLATION": "bicubic",
        "ZIP_MODE": False,
        "CACHE_MODE": "part",  # of zip mode: no, part (one copy per machine), full (one copy per process)
        "PIN_MEMORY": True,
        "NUM_WORKERS": 8,
        "IMG_ON_MEMORY": False,  # keep the encoded training images in memory, one copy per machine
        "TIMEOUT": 300,  # seconds to wait for a batch of the workers; 0: for ever
        "SKIP_BAD_IMAGES": False,  # leave out images that cannot be read instead of stopping
    },
    "MODEL": {
        "TYPE": "INTERN_IMAGE",
        "NAME": "intern_image",  # always the name of the YAML file, without its suffix
        "PRETRAINED": "",
        "RESUME": "",
        "NUM_CLASSES": 1000,
        "DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.1,
        "DROP_PATH_TYPE": "linear",
        "LABEL_SMOOTHING": 0.1,
        "INTERN_IMAGE": {**_LEVELS, "CORE_OP": "DCNv3", "REMOVE_CENTER": False},
        "FLASH_INTERN_IMAGE": {**_LEVELS, "CORE_OP": "DCNv4", "MLP_FC2_BIAS": False, "DCN_OUTPUT_BIAS": False},
    },
    "TRAIN": {
        "START_EPOCH": 0,
        "EPOCHS": 300,
        "WARMUP_EPOCHS": 20,
        "WEIGHT_DECAY": 0.05,
        "BASE_LR": 5e-4,  # the three rates are for a total batch of 512
        "WARMUP_LR": 5e-7,
        "MIN_LR": 5e-6,
        "CLIP_GRAD": 5.0,
        "AUTO_RESUME": True,
        "ACCUMULATION_STEPS": 0,
        "USE_CHECKPOINT": False,  # gradient checkpointing
        "LR_SCHEDULER": {"NAME": "cosine", "DECAY_EPOCHS": 30, "DECAY_RATE": 0.1},
        "OPTIMIZER": {
            "NAME": "adamw",
            "EPS": 1e-8,
            "BETAS": [0.9, 0.999],
            "MOMENTUM": 0.9,
            "USE_ZERO": False,
            "FREEZE_BACKBONE": None,  # number of levels to freeze
            "DCN_LR_MUL": None,
        },
        "EMA": {"ENABLE": False, "DECAY": 0.9998},
        "LR_LAYER_DECAY": False,
        "LR_LAYER_DECAY_RATIO": 0.875,
        "RAND_INIT_FT_HEAD": False,
    },
    "AUG": {
        "COLOR_JITTER": 0.4,
        "AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
        "REPROB": 0.25,
        "REMODE": "pixel",
        "RECOUNT": 1,
        "MIXUP": 0.8,
        "CUTMIX": 1.0,
        "CUTMIX_MINMAX": None,
        "MIXUP_PROB": 1.0,
        "MIXUP_SWITCH_PROB": 0.5,
        "MIXUP_MODE": "batch",
        "CROP_SCALE": [0.08, 1.0],  # of training: least and greatest part of the area that a random crop keeps
        "RANDOM_RESIZED_CROP": False,  # of evaluation, without TEST.CROP
        "MEAN": [0.485, 0.456, 0.406],
        "STD": [0.229, 0.224, 0.225],
    },
    "TEST": {"CROP": True, "SEQUENTIAL": False},
    "AMP_OPT_LEVEL": "",  # read from old files, without effect: AMP and AMP_TYPE decide
    "AMP_TYPE": "float16",
    "AMP": "auto",
    "TF32": True,  # float32 products and convolutions on a GPU may round their factors to TF32
    "COMPILE": "off",  # a mode of torch.compile
    "OUTPUT": "",
    "TAG": "default",
    "SAVE_FREQ": 1,
    "SAVE_CKPT_NUM": 1,
    "PRINT_FREQ": 10,
    "EVAL_FREQ": 1,
    "SEED": 0,
    "EVAL_MODE": False,
    "THROUGHPUT_MODE": False,
    "LOCAL_RANK": 0,
    "LAUNCHER": "auto",
    "EVAL_22K_TO_1K": False,
}

# Keys that may be None, with the type they have otherwise.
OPTIONAL = {
    "MODEL.INTERN_IMAGE.LAYER_SCALE": float,
    "MODEL.INTERN_IMAGE.DW_KERNEL_SIZE": int,
    "MODEL.INTERN_IMAGE.LEVEL2_POST_NORM_BLOCK_IDS": list,
    "MODEL.FLASH_INTERN_IMAGE.LAYER_SCALE": float,
    "MODEL.FLASH_INTERN_IMAGE.DW_KERNEL_SIZE": int,
    "MODEL.FLASH_INTERN_IMAGE.LEVEL2_POST_NORM_BLOCK_IDS": list,
    "TRAIN.CLIP_GRAD": float,
    "TRAIN.OPTIMIZER.FREEZE_BACKBONE": int,
    "TRAIN.OPTIMIZER.DCN_LR_MUL": float,
    "AUG.AUTO_AUGMENT": str,
    "AUG.CUTMIX_MINMAX": list,
}

CHOICES = {
    "DATA.DATASET": ("imagenet", "imagenet22K", "inat18", "folder"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "lanczos", "hamming", "random"),
    "DATA.CACHE_MODE": ("no", "part", "full"),
    "MODEL.TYPE": ("intern_image", "intern_image_meta_former", "flash_intern_image", "INTERN_IMAGE"),
    "MODEL.DROP_PATH_TYPE": ("linear", "uniform"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step"),
    "AUG.REMODE": ("pixel", "rand", "const"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "AMP_TYPE": ("float16", "bfloat16"),
    "AMP": ("auto", "off", "bf16", "fp16"),
    "COMPILE": ("off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "LAUNCHER": ("auto", "none", "pytorch", "slurm"),
}

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")

AT_LEAST = {
    "DATA.BATCH_SIZE": 1,
    "DATA.IMG_SIZE": 1,
    "DATA.NUM_WORKERS": 0,
    "DATA.TIMEOUT": 0,
    "MODEL.NUM_CLASSES": 1,
    "TRAIN.EPOCHS": 0,
    "TRAIN.ACCUMULATION_STEPS": 0,
    "SAVE_FREQ": 1,
    "SAVE_CKPT_NUM": 1,
    "PRINT_FREQ": 1,
    "EVAL_FREQ": 1,
    "SEED": 0,
}
