"""The table of configuration keys: default, description and valid values of each.

Names and defaults are those of the original project (OpenGVLab InternImage, MIT licence). New keys are
`DATA.SKIP_BAD_IMAGES`, `SAVE_CKPT_NUM`, `LOGGER` and `LAUNCHER`, which mirror command-line options, `AMP`, `TF32`,
`COMPILE`, `DATA.TIMEOUT`, `DATA.IMAGES_URL`, `DATA.TRAIN_SHARDS`, `DATA.VAL_SHARDS`, `MODEL.IN_CHANS`,
`TRAIN.FP16_GRADIENTS`, `TRAIN.EARLY_STOPPING`, `EVAL_FIRST`,
`TRAIN.SHARD`, `TRAIN.CPU_OFFLOAD`, `SHARDED_CHECKPOINT`, `PREDICTIONS`, `REPORT`, and `AUG.CROP_SCALE`, `CROP_RATIO`,
`HFLIP`, `VFLIP`.
`tools/configuration_page.py` writes docs/configuration.md from this table.
"""

import ast
import copy
import functools
import re
from dataclasses import dataclass

__all__ = ["CUDA_GRAPH_MODES", "DEFAULTS", "MAX_TEXT", "SETTINGS", "Setting"]

MAX_TEXT = 1000  # characters of one value


@dataclass(frozen=True)
class Setting:
    """One configuration key.

    Attributes:
        default: the default, which determines the type unless `optional` is set.
        doc: one-line description.
        allowed: the valid words; or the interval of a number or of the numbers of a list, such as "[0, 1)".
        length: minimum and maximum length of a list.
        optional: type of a value (or of the items of a list) that may also be None.
        pair: the value may also be a list of two: height and width.
    """

    default: object
    doc: str
    allowed: str | tuple[str, ...] = ""
    length: tuple[int, int] | None = None
    optional: type | None = None
    pair: bool = False

    @property
    def kind(self) -> type:
        """Type of the value, or of the items of a list."""
        return self.optional or type(self.default if self.length is None else self.default[0])

    @property
    def choices(self) -> tuple[str, ...]:
        """The valid words, if only some are valid."""
        return self.allowed if isinstance(self.allowed, tuple) else ()

    @property
    def expected(self) -> str:
        """Description of the valid values."""
        words = self.kind.__name__ + ("s" if self.length else "")
        if self.choices:
            words = f"one of {', '.join(self.choices)}"
        elif self.allowed:
            words += f" in {self.allowed}"
        if self.length:
            least, most = self.length
            words = f"list of {most if least == most else f'{least} to {most}'} {words}"
        return words + (" or None" if self.optional else "") + (", or two: [height, width]" if self.pair else "")

    def read(self, value: object) -> object:
        """Convert `value` to the type of this key. Raises `ValueError` for a wrong type, length or range."""
        if isinstance(value, bool) and self.choices:
            # YAML 1.1 reads the words `no` and `off` as False.
            value = next((word for word in self.choices if not value and word in ("no", "off")), value)
        decoded = _literal(value)
        if decoded is None and self.optional:
            return None
        if self.pair and isinstance(decoded, (list, tuple)) and len(decoded) == 2:
            return [self._read_item(item) for item in decoded]
        if self.length is None:
            return self._read_item(value)
        least, most = self.length
        if not isinstance(decoded, (list, tuple)) or not least <= len(decoded) <= most:
            raise ValueError(self.expected)
        return [self._read_item(item) for item in decoded]

    def _read_item(self, item: object) -> object:
        value = _literal(item)
        if self.kind is str and (item is None or isinstance(item, (str, int, float))):
            value = "" if value is None else str(item)  # `TAG: 3` and `PRETRAINED: None` mean text and nothing
        elif self.kind is float and type(value) is int:
            value = float(value) if abs(value) < 1e300 else value
        elif self.kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if type(value) is self.kind and self._permits(value):
            return value
        raise ValueError(self.expected)

    def _permits(self, value: str | float) -> bool:
        if self.choices:
            return value in self.choices
        if self.allowed:
            return _is_within(value, self.allowed)
        return self.kind is bool or not (len(value) > MAX_TEXT or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value))


def _literal(value: object) -> object:
    """Parse a string as a Python literal, as yacs does.

    `5e-4` and `None` are strings in YAML 1.1; in the released files they are a number and None.
    """
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: hundreds of brackets or signs
        return value


def _is_within(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_COMPILE = ("off", "default", *CUDA_GRAPH_MODES, "max-autotune-no-cudagraphs")
_DATASETS = ("imagenet", "imagenet22K", "inat18", "places365", "places205", "folder", "tar")
_INTERPOLATION = ("bicubic", "bilinear", "lanczos", "hamming", "random")
_SHARD = ("none", "zero", "fsdp")
_TYPES = ("intern_image", "intern_image_meta_former", "flash_intern_image", "INTERN_IMAGE")

_LEVELS = {
    "DEPTHS": Setting([4, 4, 18, 4], "blocks of each level", "[1, 200]", (2, 8)),
    "GROUPS": Setting([4, 8, 16, 32], "groups of the operator in each level", "[1, 65536]", (2, 8)),
    "CHANNELS": Setting(64, "channels of the first level; each level doubles them", "[2, 8192]"),
    "LAYER_SCALE": Setting(None, "initial scale of the branches; None: no scales", "[0, 1000]", optional=float),
    "OFFSET_SCALE": Setting(1.0, "factor on the operator's grid and offsets", "(0, 1000]"),
    "MLP_RATIO": Setting(4.0, "hidden channels of the MLPs, relative to the input's", "[0.5, 100]"),
    "POST_NORM": Setting(False, "norms after operator and MLP, not before (S to XL, G)"),
    "RES_POST_NORM": Setting(False, "norms on both sides of operator and MLP (H)"),
    "DW_KERNEL_SIZE": Setting(None, "depthwise convolution, odd; None: 3 (DCNv4: none)", "[1, 31]", optional=int),
    "USE_CLIP_PROJECTOR": Setting(False, "head with attention pooling (H, G)"),
    "LEVEL2_POST_NORM": Setting(False, "further norms in level 2, which counts from 0 (H, G)"),
    "LEVEL2_POST_NORM_BLOCK_IDS": Setting(None, "blocks before them", "[0, 199]", (0, 200), optional=int),
    "CENTER_FEATURE_SCALE": Setting(False, "blend the operator's output with its input, by group (H, G; not DCNv4)"),
}

SETTINGS = {
    "BASE": Setting([""], "YAML files to start from, relative to the file that names them", length=(0, 10)),
    "DATA.BATCH_SIZE": Setting(128, "images of each process and step", "[1, 1e6]"),
    "DATA.DATA_PATH": Setting("", "folder of the data set; empty: data/imagenet"),
    "DATA.DATASET": Setting("imagenet", "folder: any ImageFolder; tar: WebDataset's tar files", _DATASETS),
    "DATA.IMAGES_URL": Setting("", "where images of list files are, s3://bucket/folder or another URL of fsspec"),
    "DATA.TRAIN_SHARDS": Setting(
        "", "train-{000000..001023}.tar, or a folder of tar files; empty: train/ or train-*.tar"
    ),
    "DATA.VAL_SHARDS": Setting("", "the same for evaluation; empty: val/ or val-*.tar"),
    "DATA.IMG_SIZE": Setting(224, "height and width of the model's input", "[1, 8192]", pair=True),
    "DATA.INTERPOLATION": Setting("bicubic", "filter of resizing", _INTERPOLATION),
    "DATA.ZIP_MODE": Setting(False, "read train.zip and val.zip instead of folders"),
    "DATA.CACHE_MODE": Setting("part", "zip files in memory; full: in every process", ("no", "part", "full")),
    "DATA.PIN_MEMORY": Setting(True, "page-locked batches, which a GPU copies faster"),
    "DATA.NUM_WORKERS": Setting(8, "data workers of each process, at most its share of the CPUs", "[0, 1000]"),
    "DATA.IMG_ON_MEMORY": Setting(False, "keep the encoded training images in memory, once a machine"),
    "DATA.TIMEOUT": Setting(300, "seconds to wait for a batch of the workers; 0: forever", "[0, 1000000]"),
    "DATA.SKIP_BAD_IMAGES": Setting(False, "count images that cannot be read and go on without them"),
    "MODEL.TYPE": Setting("INTERN_IMAGE", "the architecture", _TYPES),
    "MODEL.NAME": Setting("intern_image", "always the name of the YAML file, without its suffix"),
    "MODEL.PRETRAINED": Setting("", "initialise from this checkpoint: a path, a URL or a released name"),
    "MODEL.RESUME": Setting("", "continue from (or, with --eval, evaluate) this checkpoint"),
    "MODEL.IN_CHANS": Setting(3, "channels of the input; 1: images are converted to grey", "[1, 3]"),
    "MODEL.NUM_CLASSES": Setting(1000, "outputs, if no data set decides", "[1, 1e6]"),
    "MODEL.DROP_RATE": Setting(0.0, "dropout after the stem and in the MLPs", "[0, 1)"),
    "MODEL.DROP_PATH_RATE": Setting(0.1, "stochastic depth of the last block", "[0, 1)"),
    "MODEL.DROP_PATH_TYPE": Setting("linear", "rising from 0, or the same for all blocks", ("linear", "uniform")),
    "MODEL.LABEL_SMOOTHING": Setting(0.1, "share of the target that all classes divide", "[0, 1]"),
    **{f"MODEL.INTERN_IMAGE.{name}": setting for name, setting in _LEVELS.items()},
    "MODEL.INTERN_IMAGE.CORE_OP": Setting("DCNv3", "the operator, compiled or in PyTorch", ("DCNv3", "DCNv3_pytorch")),
    "MODEL.INTERN_IMAGE.REMOVE_CENTER": Setting(False, "leave out the central point of the grid"),
    **{f"MODEL.FLASH_INTERN_IMAGE.{name}": setting for name, setting in _LEVELS.items()},
    "MODEL.FLASH_INTERN_IMAGE.CORE_OP": Setting("DCNv4", "the operator", ("DCNv4",)),
    "MODEL.FLASH_INTERN_IMAGE.MLP_FC2_BIAS": Setting(False, "bias of the MLPs' second layer"),
    "MODEL.FLASH_INTERN_IMAGE.DCN_OUTPUT_BIAS": Setting(False, "bias of the operator's output projection"),
    "TRAIN.START_EPOCH": Setting(0, "number of the first epoch", "[0, 1e6]"),
    "TRAIN.EPOCHS": Setting(300, "length of the run and of its schedule", "[0, 1e6]"),
    "TRAIN.WARMUP_EPOCHS": Setting(20, "epochs in which the learning rate rises from WARMUP_LR to BASE_LR", "[0, 1e6]"),
    "TRAIN.WEIGHT_DECAY": Setting(0.05, "of parameters with two or more dimensions", "[0, 1000]"),
    "TRAIN.BASE_LR": Setting(5e-4, "learning rate for a total batch of 512", "[0, inf)"),
    "TRAIN.WARMUP_LR": Setting(5e-7, "learning rate at the start, for a total batch of 512", "[0, inf)"),
    "TRAIN.MIN_LR": Setting(5e-6, "learning rate at the end, for a total batch of 512", "[0, inf)"),
    "TRAIN.CLIP_GRAD": Setting(5.0, "greatest norm of the gradient; None or 0: any", "[0, inf)", optional=float),
    "TRAIN.EARLY_STOPPING": Setting(0, "end after this many epochs without a better top-1; 0: never", "[0, 1e6]"),
    "TRAIN.MAX_BAD_UPDATES": Setting(
        10, "updates in a row left out because the gradient is not finite, until the run stops", "[1, 1e6]"
    ),
    "TRAIN.AUTO_RESUME": Setting(True, "continue from the newest checkpoint of this run"),
    "TRAIN.ACCUMULATION_STEPS": Setting(0, "batches per optimizer step; 0: one", "[0, 1e6]"),
    "TRAIN.SHARD": Setting("none", "what is spread over the processes; zero: the optimizer's state; fsdp: all", _SHARD),
    "TRAIN.FP16_GRADIENTS": Setting(False, "processes exchange gradients in float16; not with fsdp"),
    "TRAIN.CPU_OFFLOAD": Setting(False, "with fsdp: parameters and optimizer state in CPU memory"),
    "TRAIN.USE_CHECKPOINT": Setting(False, "gradient checkpointing: less memory, more time"),
    "TRAIN.LR_SCHEDULER.NAME": Setting("cosine", "shape of the schedule", ("cosine", "linear", "step")),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": Setting(30, "epochs between the steps", "[0, 1e6]"),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": Setting(0.1, "factor of each step", "[0, 1]"),
    "TRAIN.OPTIMIZER.NAME": Setting("adamw", "sgd has Nesterov momentum; others are timm's, with its settings"),
    "TRAIN.OPTIMIZER.EPS": Setting(1e-8, "of AdamW", "[0, 1]"),
    "TRAIN.OPTIMIZER.BETAS": Setting([0.9, 0.999], "of AdamW", "[0, 1)", (2, 2)),
    "TRAIN.OPTIMIZER.MOMENTUM": Setting(0.9, "of SGD", "(0, 1)"),
    "TRAIN.OPTIMIZER.USE_ZERO": Setting(False, "older name of SHARD zero"),
    "TRAIN.OPTIMIZER.FREEZE_BACKBONE": Setting(None, "levels to freeze, from the first", "[0, 8]", optional=int),
    "TRAIN.OPTIMIZER.DCN_LR_MUL": Setting(None, "factor for offsets, with LR_LAYER_DECAY", "[0, 1000]", optional=float),
    "TRAIN.EMA.ENABLE": Setting(False, "average the weights beside the training"),
    "TRAIN.EMA.DECAY": Setting(0.9998, "share of the average that each update keeps", "[0, 1]"),
    "TRAIN.LR_LAYER_DECAY": Setting(False, "smaller learning rates for earlier blocks"),
    "TRAIN.LR_LAYER_DECAY_RATIO": Setting(0.875, "between neighbouring blocks", "(0, 1]"),
    "TRAIN.RAND_INIT_FT_HEAD": Setting(False, "a new head times 0.001, not rows of the checkpoint's"),
    "AUG.COLOR_JITTER": Setting(0.4, "of brightness, contrast and saturation, without AUTO_AUGMENT", "[0, 1000]"),
    "AUG.AUTO_AUGMENT": Setting("rand-m9-mstd0.5-inc1", "timm's name of a policy, or none", optional=str),
    "AUG.REPROB": Setting(0.25, "probability of random erasing", "[0, 1]"),
    "AUG.REMODE": Setting("pixel", "what fills an erased rectangle", ("pixel", "rand", "const")),
    "AUG.RECOUNT": Setting(1, "greatest number of erased rectangles", "[0, 100]"),
    "AUG.MIXUP": Setting(0.8, "alpha of mixup; 0: off", "[0, 1000]"),
    "AUG.CUTMIX": Setting(1.0, "alpha of CutMix; 0: off", "[0, 1000]"),
    "AUG.CUTMIX_MINMAX": Setting(None, "sides of its rectangle; 1: the image", "[0, 1]", (2, 2), optional=float),
    "AUG.MIXUP_PROB": Setting(1.0, "probability of mixup or CutMix", "[0, 1]"),
    "AUG.MIXUP_SWITCH_PROB": Setting(0.5, "probability of CutMix, where both are on", "[0, 1]"),
    "AUG.MIXUP_MODE": Setting("batch", "what shares one mixture", ("batch", "pair", "elem")),
    "AUG.CROP_SCALE": Setting([0.08, 1.0], "area of a random crop, ascending; 1: the image", "(0, 1]", (2, 2)),
    "AUG.CROP_RATIO": Setting([3 / 4, 4 / 3], "width by height of a random crop, ascending", "(0, 100]", (2, 2)),
    "AUG.HFLIP": Setting(0.5, "probability of a mirror image, left to right", "[0, 1]"),
    "AUG.VFLIP": Setting(0.0, "probability of a mirror image, top to bottom", "[0, 1]"),
    "AUG.RANDOM_RESIZED_CROP": Setting(False, "evaluate on random crops, if TEST.CROP is off"),
    "AUG.MEAN": Setting([0.485, 0.456, 0.406], "of red, green, blue from 0 to 1", "[-1000, 1000]", (3, 3)),
    "AUG.STD": Setting([0.229, 0.224, 0.225], "of red, green, blue from 0 to 1", "[1e-6, 1000]", (3, 3)),
    "TEST.CROP": Setting(True, "evaluate on the centre of the image; False: on all of it, stretched to a square"),
    "TEST.SEQUENTIAL": Setting(False, "each process evaluates neighbouring images"),
    "AMP_OPT_LEVEL": Setting("", "read from old files, without effect: AMP and AMP_TYPE decide"),
    "AMP_TYPE": Setting("float16", "dtype of mixed precision where AMP is auto", ("float16", "bfloat16")),
    "AMP": Setting("auto", "mixed precision; auto: AMP_TYPE, on GPUs only", ("auto", "off", "bf16", "fp16")),
    "TF32": Setting(True, "float32 products on GPUs may round their factors to TF32"),
    "COMPILE": Setting("off", "torch.compile; reduce-overhead and max-autotune replay CUDA graphs", _COMPILE),
    "OUTPUT": Setting("", "results go to OUTPUT/<name of the YAML file>"),
    "TAG": Setting("default", "name of this run: results go to a further folder of that name"),
    "SAVE_FREQ": Setting(1, "epochs from one checkpoint to the next", "[1, 1e6]"),
    "SAVE_CKPT_NUM": Setting(1, "checkpoints to keep, at least 2", "[1, 1e6]"),
    "SHARDED_CHECKPOINT": Setting(False, "with fsdp: folders that all processes write while training goes on"),
    "PRINT_FREQ": Setting(10, "steps from one line of the log to the next", "[1, 1e6]"),
    "EVAL_FIRST": Setting(False, "evaluate once before the training goes on or begins"),
    "EVAL_FREQ": Setting(1, "epochs from one evaluation to the next", "[1, 1e6]"),
    "LOGGER": Setting("tensorboard", "where figures go", ("tensorboard", "wandb")),
    "REPORT": Setting(True, "at the end of a training, write curves, tables and pictures to the folder report"),
    "SEED": Setting(0, "random seed", "[0, 1e18]"),
    "EVAL_MODE": Setting(False, "only evaluate"),
    "PREDICTIONS": Setting("", "with EVAL_MODE: CSV file of the predictions, beside it the folder *_report"),
    "THROUGHPUT_MODE": Setting(False, "only measure images per second"),
    "LOCAL_RANK": Setting(0, "set by some launchers; otherwise taken from the environment", "[0, 1e6]"),
    "LAUNCHER": Setting("auto", "who starts the processes", ("auto", "none", "pytorch", "slurm")),
    "EVAL_22K_TO_1K": Setting(False, "evaluate a model of 22K classes on ImageNet-1K"),
}

DEFAULTS: dict = {}  # the same in nested sections, as yacs takes them
for _key, _setting in SETTINGS.items():
    *_sections, _name = _key.split(".")
    _section = functools.reduce(lambda tree, name: tree.setdefault(name, {}), _sections, DEFAULTS)
    _section[_name] = copy.copy(_setting.default)
