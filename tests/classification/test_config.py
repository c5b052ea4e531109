"""The configuration of classification: released files, command line, errors."""

import json
from pathlib import Path

import pytest
import torch

from classification.config import DEFAULTS, amp_dtype, get_config, parse_args
from internimage.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "classification" / "configs"
RECIPES = json.loads((ROOT / "tests/data/classification_recipes.json").read_text())
NEW_KEYS = {
    "AMP",
    "TF32",
    "COMPILE",
    "LAUNCHER",
    "SAVE_CKPT_NUM",
    "DATA.SKIP_BAD_IMAGES",
    "DATA.TIMEOUT",
    "AUG.CROP_SCALE",
}
SET_BY_COMMAND_LINE = {"MODEL.NAME", "OUTPUT", "DATA.DATA_PATH", "LOCAL_RANK"}
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


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "defaults"])
def test_every_released_file_resolves_to_its_recipe(name):
    expected = flatten(RECIPES["defaults"]) | {k: spelled_out(v) for k, v in flatten(RECIPES[name]).items()}
    config = flatten(configure(cfg=CONFIGS / name))
    for key in config.keys() - NEW_KEYS - SET_BY_COMMAND_LINE:
        assert config[key] == expected[key], key
        assert type(config[key]) is type(expected[key]), key


def test_there_are_twenty_released_files_and_each_is_here():
    released = [name for name in RECIPES if name != "defaults"]
    assert len(released) == 20
    assert all((CONFIGS / name).is_file() for name in released)


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {EPOHCS: 3}", "unknown key TRAIN.EPOHCS; the nearest known key is TRAIN.EPOCHS"),
        ("TRIAN: {EPOCHS: 3}", "unknown key TRIAN.EPOCHS; the nearest known key is TRAIN.EPOCHS"),
        ("EPOCHS: 3", "nearest known key is TRAIN.EPOCHS"),
        ("TRAIN: {LR_SCHEDULER: {NAMES: a}}", "nearest known key is TRAIN.LR_SCHEDULER.NAME"),
        ("TRAIN: 3", "TRAIN is 3, expected a section"),
        ("TRAIN: {EPOCHS: many}", "TRAIN.EPOCHS is 'many', expected int"),
        ("TRAIN: {EPOCHS: true}", "TRAIN.EPOCHS is True, expected int"),
        ("TRAIN: {CLIP_GRAD: [1]}", "expected float or None"),
        ("MODEL: {INTERN_IMAGE: {DEPTHS: [1, x]}}", "DEPTHS[1] is 'x', expected int"),
        ("DATA: {DATASET: imagenet22k}", "did you mean imagenet22K?"),
        ("DATA: {BATCH_SIZE: 0}", "DATA.BATCH_SIZE is 0, expected at least 1"),
        ("DATA: [", "is not valid YAML"),
        ("hello", "holds a str, expected sections"),
        ("BASE: [a.yaml]", "BASE names this file itself"),
        ("BASE: [missing.yaml]", "missing.yaml: No such file"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        configure(cfg=write(tmp_path / "a.yaml", text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: No such file"):
        configure(cfg=tmp_path / "nowhere.yaml")


def test_opts_come_in_pairs():
    with pytest.raises(UserError, match="'TRAIN.EPOCHS' has no partner"):
        configure("--opts", "SEED", "1", "TRAIN.EPOCHS")
