"""The configuration of classification: released files, command line, errors."""

import copy
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from classification.config import amp_dtype, get_config, parse_args
from classification.configs.defaults import DEFAULTS, SETTINGS
from classification.data.transforms import build_transform
from classification.models import build_model
from classification.trainer.optimizer import build_optimizer, build_scheduler, learning_rate_scale
from internimage.errors import UserError
from tools.configuration_page import PAGE, configuration_page

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "classification" / "configs"
RECIPES = json.loads((ROOT / "tests/data/classification_recipes.json").read_text())
RELEASED = sorted(RECIPES.keys() - {"defaults"})
NEW_KEYS = {"AMP", "TF32", "COMPILE", "LAUNCHER", "LOGGER", "SAVE_CKPT_NUM"}
NEW_KEYS |= {"DATA.SKIP_BAD_IMAGES", "DATA.TIMEOUT", "DATA.TRAIN_SHARDS", "DATA.VAL_SHARDS", "MODEL.IN_CHANS"}
NEW_KEYS |= {
    "TRAIN.EARLY_STOPPING",
    "PREDICTIONS",
    "REPORT",
    "AUG.CROP_SCALE",
    "AUG.CROP_RATIO",
    "AUG.HFLIP",
    "AUG.VFLIP",
}
NEW_KEYS |= {"TRAIN.SHARD", "TRAIN.CPU_OFFLOAD", "SHARDED_CHECKPOINT", "TRAIN.MAX_BAD_UPDATES"}
NEW_KEYS |= {"DATA.IMAGES_URL", "TRAIN.FP16_GRADIENTS", "EVAL_FIRST"}
SET_OTHERWISE = {"MODEL.NAME", "OUTPUT", "DATA.DATA_PATH", "LOCAL_RANK", "BASE"}
TINY = str(CONFIGS / "internimage_t_1k_224.yaml")


def flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def spelled_out(value):
    """What the released files mean by a string such as "5e-4" or "None"."""
    if value == "None":
        return None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def configure(*argv, cfg=TINY):
    return get_config(parse_args(["--cfg", str(cfg), *argv]))


def write(path, text):
    path.write_text(text)
    return path


def test_keys_and_defaults_are_the_originals():
    ours = {key: value for key, value in flatten(DEFAULTS).items() if key not in NEW_KEYS}
    assert ours == flatten(RECIPES["defaults"])
    assert len(RELEASED) == 20


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_file_resolves_to_its_recipe(name):
    expected = flatten(RECIPES["defaults"]) | {k: spelled_out(v) for k, v in flatten(RECIPES[name]).items()}
    config = flatten(configure(cfg=CONFIGS / name))
    for key in config.keys() - NEW_KEYS - SET_OTHERWISE:
        assert config[key] == expected[key], key
        assert type(config[key]) is type(expected[key]), key


def test_numbers_and_none_may_be_spelled_as_strings(tmp_path):
    text = "MODEL: {INTERN_IMAGE: {LAYER_SCALE: 'None'}}\nTRAIN: {BASE_LR: 2e-05, CLIP_GRAD: 5}\n"
    config = configure(cfg=write(tmp_path / "a.yaml", text))
    assert config.MODEL.INTERN_IMAGE.LAYER_SCALE is None
    assert config.TRAIN.BASE_LR == 2e-5
    assert config.TRAIN.CLIP_GRAD == 5.0 and isinstance(config.TRAIN.CLIP_GRAD, float)


def test_a_file_starts_from_its_base_files(tmp_path):
    write(tmp_path / "base.yaml", "DATA: {BATCH_SIZE: 7, IMG_SIZE: 64}\n")
    config = configure(cfg=write(tmp_path / "a.yaml", "BASE: [base.yaml]\nDATA: {IMG_SIZE: 96}\n"))
    assert (config.DATA.BATCH_SIZE, config.DATA.IMG_SIZE) == (7, 96)


def test_options_win_over_opts_and_opts_over_the_file():
    config = configure("--opts", "DATA.BATCH_SIZE", "3", "TRAIN.EPOCHS", "9", "--batch_size", "5", "--eval")
    assert (config.DATA.BATCH_SIZE, config.TRAIN.EPOCHS, config.EVAL_MODE) == (5, 9, True)


def test_options_reach_their_keys():
    line = (
        "--data-path d --dataset folder --zip --cache-mode no --pretrained p --resume r --throughput --tag x "
        "--accumulation-steps 2 --use-checkpoint --use-zero --skip-bad-images --seed 4 --local-rank 1 "
        "--output o --save-ckpt-num 3 --launcher slurm --amp bf16 --no-tf32 --compile max-autotune-no-cudagraphs"
    )
    config = configure(*line.split())
    assert (config.DATA.DATA_PATH, config.DATA.DATASET, config.DATA.ZIP_MODE) == ("d", "folder", True)
    assert (config.DATA.CACHE_MODE, config.DATA.SKIP_BAD_IMAGES) == ("no", True)
    assert (config.MODEL.PRETRAINED, config.MODEL.RESUME, config.THROUGHPUT_MODE) == ("p", "r", True)
    assert (config.TRAIN.ACCUMULATION_STEPS, config.TRAIN.USE_CHECKPOINT) == (2, True)
    assert (config.TRAIN.OPTIMIZER.USE_ZERO, config.SEED, config.LOCAL_RANK) == (True, 4, 1)
    assert (config.SAVE_CKPT_NUM, config.LAUNCHER, config.AMP) == (3, "slurm", "bf16")
    assert (config.TF32, config.COMPILE) == (False, "max-autotune-no-cudagraphs")
    assert Path(config.OUTPUT) == Path("o/internimage_t_1k_224/x")


def test_repeated_opts_add_up():
    config = configure("--opts", "SEED", "3", "--epochs", "7", "--lr", "1e-3", "--opts", "AUG.HFLIP", "0")
    assert (config.SEED, config.AUG.HFLIP, config.TRAIN.EPOCHS, config.TRAIN.BASE_LR) == (3, 0.0, 7, 1e-3)


def test_a_released_name_stands_for_the_file_of_its_row_in_the_model_zoo():
    config = get_config(parse_args(["--model", "internimage_l_22kto1k_384"]))
    assert config == configure(cfg=CONFIGS / "without_lr_decay/internimage_l_22kto1k_384.yaml")
    with pytest.raises(UserError, match="did you mean internimage_b_1k_224"):
        get_config(parse_args(["--model", "internimage_b"]))
    with pytest.raises(UserError, match="no configuration of a classifier"):
        get_config(parse_args(["--model", "mask_rcnn_internimage_t_fpn_1x_coco"]))


def test_all_keys_can_be_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(["--list-keys"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0 and len(lines) == len(SETTINGS)
    assert "AUG.HFLIP = 0.5  (float in [0, 1]): probability of a mirror image, left to right" in lines


def test_a_misspelt_option_gets_one_line_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        configure("--batchsize", "8")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: unknown option --batchsize; did you mean --batch-size?")


@pytest.mark.parametrize("name", ["lamb", "lion", "adafactor", "muon"])
def test_timms_optimizers_take_the_configured_groups(name):
    config = configure("--opts", "TRAIN.OPTIMIZER.NAME", name)
    optimizer = build_optimizer(config, torch.nn.Linear(4, 4), 1.0, 1)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]
    assert {group["lr"] for group in optimizer.param_groups} == {config.TRAIN.BASE_LR}


def test_tf32_and_compiling_can_be_said_in_the_file_and_on_the_command_line(tmp_path):
    assert (configure().TF32, configure().COMPILE) == (True, "off")
    assert configure("--compile").COMPILE == "default"
    cfg = write(tmp_path / "a.yaml", "TF32: false\nCOMPILE: reduce-overhead\n")
    assert (configure(cfg=cfg).TF32, configure(cfg=cfg).COMPILE) == (False, "reduce-overhead")
    config = configure("--tf32", "--compile", "off", cfg=cfg)
    assert (config.TF32, config.COMPILE) == (True, "off")


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_and_accumulated_gradients_are_refused_together(mode):
    with pytest.raises(UserError, match=f"--compile {mode} .*--compile default"):
        configure("--compile", mode, "--accumulation-steps", "2")
    configure("--compile", mode, "--accumulation-steps", "1")


def test_an_untagged_run_writes_where_the_original_does():
    assert Path(configure().OUTPUT) == Path("output/internimage_t_1k_224")


def test_the_command_line_decides_about_mixed_precision(tmp_path):
    cfg = write(tmp_path / "a.yaml", "AMP_OPT_LEVEL: O0\nAMP_TYPE: bfloat16\n")
    assert amp_dtype(configure(cfg=cfg), "cuda") is torch.bfloat16
    assert amp_dtype(configure(cfg=cfg), "cpu") is None
    assert amp_dtype(configure("--amp", "fp16", cfg=cfg), "cpu") is torch.float16
    for off in (["--amp", "off"], ["--disable_amp"], ["--amp-opt-level", "O0"]):
        assert amp_dtype(configure(*off, cfg=cfg), "cuda") is None


def test_words_that_yaml_takes_for_booleans_are_understood(tmp_path):
    config = configure(cfg=write(tmp_path / "a.yaml", "AMP: off\nDATA: {CACHE_MODE: no}\n"))
    assert (config.AMP, config.DATA.CACHE_MODE) == ("off", "no")


def test_the_configuration_is_frozen():
    with pytest.raises(AttributeError):
        configure().SEED = 1


# Mistakes in a file, and what the one line must say beside the file's name.
MISTAKES = {
    "TRAIN: {EPOHCS: 3}": "unknown key TRAIN.EPOHCS; the nearest known key is TRAIN.EPOCHS",
    "TRIAN: {EPOCHS: 3}": "unknown key TRIAN.EPOCHS; the nearest known key is TRAIN.EPOCHS",
    "EPOCHS: 3": "nearest known key is TRAIN.EPOCHS",
    "TRAIN: {LR_SCHEDULER: {NAMES: a}}": "nearest known key is TRAIN.LR_SCHEDULER.NAME",
    "TRAIN: 3": "TRAIN is 3, expected a section",
    "TRAIN: {EPOCHS: many}": "TRAIN.EPOCHS is 'many', expected int in [0, 1e6]",
    "TRAIN: {EPOCHS: true}": "TRAIN.EPOCHS is True, expected int",
    "TRAIN: {CLIP_GRAD: [1]}": "TRAIN.CLIP_GRAD is [1], expected float in [0, inf) or None",
    "TRAIN: {CLIP_GRAD: .nan}": "TRAIN.CLIP_GRAD is nan, expected float",
    "TRAIN: {BASE_LR: .inf}": "TRAIN.BASE_LR is inf, expected float",
    "TRAIN: {BASE_LR: '1e999'}": "TRAIN.BASE_LR is '1e999', expected float",
    "TRAIN: {MIN_LR: -1}": "TRAIN.MIN_LR is -1, expected float in [0, inf)",
    "TRAIN: {OPTIMIZER: {BETAS: [1.0, 0.0]}}": "BETAS is [1.0, 0.0], expected list of 2 floats in [0, 1)",
    "TRAIN: {OPTIMIZER: {BETAS: [0.9]}}": "BETAS is [0.9], expected list of 2 floats",
    "AUG: {STD: [0, 0, 0]}": "AUG.STD is [0, 0, 0], expected list of 3 floats in [1e-6, 1000]",
    "AUG: {CROP_SCALE: [0.5, 0.1]}": "AUG.CROP_SCALE is [0.5, 0.1], expected the smaller number first",
    "AUG: {SCALE: [0.5, 1]}": "nearest known key is AUG.CROP_SCALE",
    "AUG: {RATIO: [0.5, 1]}": "nearest known key is AUG.CROP_RATIO",
    "DATA: {IMG_SIZE: [64, 0]}": "DATA.IMG_SIZE is [64, 0], expected int in [1, 8192], or two: [height, width]",
    "MODEL: {IN_CHANS: 2}": "MODEL.IN_CHANS is 2, expected 3, or 1 for grey",
    "TRAIN: {OPTIMIZER: {NAME: lamp}}": "OPTIMIZER.NAME is lamp, expected one of timm's (did you mean lamb?)",
    "AUG: {CUTMIX_MINMAX: [0.5, 0.501]}": "AUG.CUTMIX_MINMAX is [0.5, 0.501], expected",
    "MODEL: {DROP_PATH_RATE: 1.5}": "MODEL.DROP_PATH_RATE is 1.5, expected float in [0, 1)",
    "MODEL: {PRETRAINED: [a]}": "MODEL.PRETRAINED is ['a'], expected str",
    'MODEL: {PRETRAINED: "a\\0b"}': r"MODEL.PRETRAINED is 'a\x00b', expected str",
    'BASE: ["\\ud800"]': r"BASE is ['\ud800'], expected list of 0 to 10 strs",
    "MODEL: {INTERN_IMAGE: {CHANNELS: -1}}": "CHANNELS is -1, expected int in [2, 8192]",
    "MODEL: {INTERN_IMAGE: {DEPTHS: [1, x]}}": "DEPTHS is [1, 'x'], expected list of 2 to 8 ints",
    "MODEL: {INTERN_IMAGE: {DEPTHS: [1, 1]}}": "GROUPS is [4, 8, 16, 32], expected a divisor of each level's channels",
    "MODEL: {INTERN_IMAGE: {GROUPS: [3, 6, 12, 24]}}": "divisor of each level's channels, [64, 128, 256, 512]",
    "MODEL: {INTERN_IMAGE: {DW_KERNEL_SIZE: 4}}": "DW_KERNEL_SIZE is 4, expected an odd number",
    "MODEL: {INTERN_IMAGE: {LEVEL2_POST_NORM_BLOCK_IDS: [5, 18]}}": "expected ascending numbers of the 18 blocks",
    "MODEL: {INTERN_IMAGE: {LEVEL2_POST_NORM_BLOCK_IDS: [5, 5]}}": "expected ascending numbers of the 18 blocks",
    "DATA: {DATASET: imagenet22k}": "did you mean imagenet22K?",
    "DATA: {BATCH_SIZE: 0}": "DATA.BATCH_SIZE is 0, expected int in [1, 1e6]",
    "DATA: [": "is not valid YAML",
    "hello": "is a str, expected sections",
    "BASE: [a.yaml]": "BASE refers to this file itself",
    "BASE: [missing.yaml]": "missing.yaml: No such file",
    "BASE: {a: 1}": "BASE is {'a': 1}, expected list of 0 to 10 strs",
}


def error_of(call, *args, **kwargs):
    """The one line of the error that a call must end in."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500, line
    return line


def test_mistakes_in_a_file_are_named_with_key_value_and_what_was_expected(tmp_path):
    lines = {text: error_of(configure, cfg=write(tmp_path / "a.yaml", text)) for text in MISTAKES}
    assert {text: line for text, line in lines.items() if MISTAKES[text] not in line} == {}
    assert all(f"{tmp_path}/" in line for line in lines.values())


def test_settings_are_pairs_of_words_or_have_an_equals_sign():
    config = configure("--opts", "SEED=3", "TRAIN.EPOCHS", "7", "--cfg-options", "DATA.DATA_PATH", "a=b", "TAG=c=d")
    assert (config.SEED, config.TRAIN.EPOCHS, config.DATA.DATA_PATH, config.TAG) == (3, 7, "a=b", "c=d")


def test_resume_without_a_name_is_the_default_and_checkpoint_is_its_other_name():
    assert configure("--resume") == configure()
    assert configure("--checkpoint", "a.pth") == configure("--resume", "a.pth") != configure()


def test_mistakes_of_the_command_line_are_named():
    assert error_of(configure, "--opts", "SEED", "1", "TRAIN.EPOCHS").endswith("'TRAIN.EPOCHS' has no value")
    assert error_of(configure, "--opts", "SEED", "-1") == "--opts: SEED is '-1', expected int in [0, 1e18]"
    assert "SAVE_CKPT_NUM is 'x', expected int" in error_of(configure, "--save-ckpt-num", "x")
    for value in ("9" * 5000, "0x" + "f" * 990, "[" * 900, "(" + "-" * 900 + "1)"):
        assert "--opts: TRAIN.EPOCHS is" in error_of(configure, "--opts", "TRAIN.EPOCHS", value)
    assert "unknown key A.A.A." in error_of(configure, "--opts", ".".join("A" * 5000), "1")


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
MERGE_BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n" for before, name in zip("abcdefgh", "bcdefghi")
)
HARMFUL = {
    "an alias bomb": (BOMB, "more than 2000 values"),
    "a bomb of merged mappings": (MERGE_BOMB, "more than 2000 values"),
    "a list within itself": ("TRAIN: &a [*a]", "more than 2000 values"),
    "deep nesting": ("[" * 5000, "more than 20 levels"),
    "deep nesting in blocks": ("".join(f"{' ' * i}a:\n" for i in range(300)), "more than 20 levels"),
    "an int of 5,000 digits": ("SEED: " + "9" * 5000, "more than 1000 characters"),
    "a long hexadecimal int": ("SEED: 0x" + "f" * 990, "SEED is"),
    "a date that does not exist": ("TAG: 2026-99-99", "not valid YAML"),
    "an empty int": ("SEED: !!int ''", "not valid YAML"),
    "an object of Python": ("SEED: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "a key given twice": ("TRAIN: {EPOCHS: 1, EPOCHS: 2}", "key 'EPOCHS' twice"),
    "a key of two lines": ('"a\\nb": 1', r"unknown key a\nb"),
    "a large file": ("# a comment\n" * 100_000, "more than 65536 bytes"),
    "no text": (b"\xff\xfe\x00", "is not a text file"),
}


def test_files_that_would_exhaust_memory_or_time_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    for name, (content, message) in HARMFUL.items():
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert message in error_of(configure, cfg=path), name


def test_base_files_that_multiply_or_never_end_are_refused(tmp_path):
    for number in range(12):
        write(tmp_path / f"{number}.yaml", f"BASE: [{number + 1}.yaml, {number + 1}.yaml]\n")
    write(tmp_path / "12.yaml", "")
    assert "BASE includes more than 100 files" in error_of(configure, cfg=tmp_path / "0.yaml")
    for number in range(12, 40):
        write(tmp_path / f"{number}.yaml", f"BASE: {number + 1}.yaml\n")
    assert "is nested in 20 files" in error_of(configure, cfg=tmp_path / "12.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    assert "a.yaml is not a file" in error_of(configure, cfg=tmp_path / "a.yaml")
    assert "is not a file" in error_of(configure, cfg=tmp_path)


def test_aliases_and_merged_mappings_of_yaml_are_read(tmp_path):
    text = "MODEL: {INTERN_IMAGE: &shape {GROUPS: &g [2, 4, 8, 16], DEPTHS: *g}, FLASH_INTERN_IMAGE: {<<: *shape}}"
    model = configure(cfg=write(tmp_path / "a.yaml", text)).MODEL
    assert model.INTERN_IMAGE.DEPTHS == model.INTERN_IMAGE.GROUPS == model.FLASH_INTERN_IMAGE.DEPTHS == [2, 4, 8, 16]


def test_a_resolved_configuration_loads_again(tmp_path):
    config = configure(cfg=CONFIGS / "internimage_h_22kto1k_640.yaml")
    again = configure("--output", ".", cfg=write(tmp_path / "internimage_h_22kto1k_640.yaml", config.dump()))
    assert {key for key, value in flatten(again).items() if value != flatten(config)[key]} == {"OUTPUT"}


NUMBERS = (-1, 0, 1, 2, 3, 30, 1.5, -0.5, 0.5, 1e-300, 1e300, 10**30, float("nan"), float("inf"))
LISTS = ([], [1], [0, 0], [1, 1], [1.0, 0.0], [0.1, 0.5], [0.5, 0.1], [0] * 3, [0.5] * 3, [1] * 4, [-1] * 4, [2] * 9)
MORE_LISTS = (
    [3, 6, 12, 24],
    [10**9] * 4,
    [1, 2, 3, 4, 5],
    [2, 1],
    [0, 2],
    [7],
    ["x"] * 4,
    [[1]] * 4,
    [[[[1]]]],
    [None],
)
OTHERS = (None, True, {}, {"a": 1}, "x", "", "None", "1e999", "9" * 400, "[" * 900)


def mutated_value(rng, setting):
    """A value for this setting, of its type more often than not."""
    if rng.random() < 0.3:
        return rng.choice(NUMBERS + LISTS + MORE_LISTS + OTHERS)
    if setting.length:
        return rng.choice(LISTS + MORE_LISTS)
    return rng.choice({bool: (True, False), str: setting.choices or OTHERS}.get(setting.kind, NUMBERS))


def test_no_mutation_of_a_file_ends_in_a_traceback(tmp_path):
    rng = random.Random(0)
    released = [yaml.safe_load((CONFIGS / name).read_text()) for name in RELEASED]
    demo = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    demo["MODEL"]["INTERN_IMAGE"]["DEPTHS"] = [1, 1, 1, 1]
    outcomes = Counter()
    for number in range(300):
        builds = number % 3 == 0
        tree = copy.deepcopy(demo if builds else rng.choice(released))
        for _ in range(rng.choice((1, 1, 2))):
            key = rng.choice(list(SETTINGS))
            *sections, name = key.split(".")
            node = tree
            for part in sections:
                node = node.setdefault(part, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict):
                node[name] = mutated_value(rng, SETTINGS[key])
        path = write(tmp_path / "a.yaml", yaml.safe_dump(tree))
        try:
            config = configure(cfg=path)
            if builds:
                with torch.device("meta"):
                    model = build_model(config)
                scale = learning_rate_scale(config, 1)
                build_scheduler(config, build_optimizer(config, model, scale, 1), scale, 10).step_update(3)
                build_transform(config, train=True)
                build_transform(config, train=False)
            outcomes["loaded"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50  # the mutations are neither all harmless nor all refused


def test_the_page_of_the_configuration_is_current():
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run: python tools/configuration_page.py"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: No such file"):
        configure(cfg=tmp_path / "nowhere.yaml")
