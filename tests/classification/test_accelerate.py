"""Accelerate and DeepSpeed: two gloo processes train as one process of train.py, stop, resume and refuse."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from tiny_training import (
    ROOT,
    TWO_LEVELS,
    make_images,
    run_here,
    stop_at,
    two_processes,
    without_batch_norm,
    write_config,
)

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 - imported by every engine, and brings torch's compiler

from classification import train_accelerate
from classification.config import get_config, parse_args
from classification.trainer import engine
from classification.trainer.accelerate import _plain_file, join
from classification.trainer.deepspeed import DeepSpeedStrategy
from classification.trainer.distributed import World
from classification.trainer.tracking import Tracker
from internimage.errors import UserError
from tools import dcp_to_pth

CONFIGS = ROOT / "classification" / "configs" / "accelerate"
# One epoch of 8 steps in updates of 3, 3 and 2. What draws per process is off.
RUN = {
    "DATA": {"BATCH_SIZE": 4},
    "AUG": {"MIXUP": 0.0, "CUTMIX": 0.0},
    "MODEL": TWO_LEVELS | {"DROP_PATH_RATE": 0.0},
    "TRAIN": {"EPOCHS": 1, "ACCUMULATION_STEPS": 3},
    "PRINT_FREQ": 1,
}
LAST = "ckpt_epoch_0.pth"


@pytest.fixture(autouse=True)
def all_runs_are_the_same_mathematics(monkeypatch):
    without_batch_norm(monkeypatch)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), RUN)


def zero(folder, stage, offload="none", **more):
    """The environment in which `accelerate launch` starts processes for this stage."""
    spread = {"stage": stage, "offload_optimizer": {"device": offload}}
    spread |= {"offload_param": {"device": offload}} if stage == 3 else {}
    names = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": spread} | dict.fromkeys(names, "auto") | more))
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


def train_two(config, folder, environment, *arguments, stop=None):
    """Exit codes and output of train_accelerate.py in two processes."""

    def main(words):
        with pytest.MonkeyPatch.context() as patches:
            for name, value in environment.items():
                patches.setenv(name, value)
            if stop:
                stop_at(patches, stop, signal.SIGTERM)
            train_accelerate.main(words)

    results = two_processes(folder, "--cfg", str(config), "--output", str(folder), *arguments, main=main)
    return [code for code, _ in results], results[0][1]


def load(folder, name=LAST):
    return torch.load(folder / "tiny" / name, weights_only=True)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The last checkpoint of train.py in one process, with the batch of two."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patches:
        without_batch_norm(patches)
        run_here(config, folder, "--batch-size", "8")
    return load(folder)


def norm(tensors):
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def assert_alike(checkpoint, expected):
    for part in ("model", "model_ema"):
        assert checkpoint[part].keys() == expected[part].keys()
        apart = {name: checkpoint[part][name] - value for name, value in expected[part].items()}
        assert norm(apart.values()) <= 1e-6 * norm(expected[part].values())  # measured 2e-8
        for name, difference in apart.items():
            # Measured 1.1e-5, in biases that start at 0 and of whose tiny gradients Adam makes whole steps.
            assert norm([difference]) <= 1e-4 * norm([expected[part][name]]), name


def assert_equal(left, right):
    for part in ("model", "model_ema"):
        assert all(torch.equal(left[part][name], value) for name, value in right[part].items())


def shipped(folder):
    """The environment of `dist_2cpus_zero1.yaml`."""
    values = load_config_from_file(str(CONFIGS / "dist_2cpus_zero1.yaml"))
    assert values.num_processes == 2 and values.use_cpu
    file = values.deepspeed_config["deepspeed_config_file"]
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file}


MODES = {
    "DDP": lambda folder: {},
    "FSDP2": lambda folder: {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "ZeRO 1": shipped,
    "ZeRO 2, optimizer on the CPU": lambda folder: zero(folder, 2, "cpu"),
    "ZeRO 3, optimizer and parameters on the CPU": lambda folder: zero(folder, 3, "cpu"),
}


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_and_zero_1_also_if_stopped_in_mid_epoch(mode, config, alone, tmp_path):
    environment, stops = MODES[mode](tmp_path), mode == "ZeRO 1"  # stage 2 has the same code; stage 3: next test
    if stops:
        codes, printed = train_two(config, tmp_path, environment, stop="epoch 0/1 step 2/8")
        assert codes == [75, 0], printed
        assert [path.stem for path in (tmp_path / "tiny").glob("*.deepspeed")] == ["ckpt_epoch_0_step_6"]
    codes, printed = train_two(config, tmp_path, environment)
    assert codes == [0, 0] and ("resumed from" in printed) == stops, printed
    assert_alike(load(tmp_path), alone)


def test_bf16_with_zero_3_resumes_to_the_same_bits_and_reads_as_plain_weights(config, tmp_path):
    environment = zero(tmp_path, 3, bf16={"enabled": True})
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    assert train_two(config, undisturbed, environment)[0] == [0, 0]
    assert train_two(config, stopped, environment, stop="epoch 0/1 step 2/8")[0] == [75, 0]
    assert train_two(config, stopped, environment)[0] == [0, 0]
    expected = load(undisturbed)
    assert_equal(load(stopped), expected)
    assert all(value.dtype == torch.float32 for value in expected["model"].values() if value.is_floating_point())
    # Old folders are gone; the last one converts to the weights of the plain file beside it.
    (folder,) = (stopped / "tiny").glob("*.deepspeed")
    dcp_to_pth.main([str(folder), str(tmp_path / "converted.pth")])
    converted = torch.load(tmp_path / "converted.pth", weights_only=True)["model"]
    assert all(torch.equal(converted[name], value) for name, value in load(stopped)["model"].items())


def test_zero_leaves_out_an_update_whose_gradient_is_not_finite(config, tmp_path, monkeypatch):
    to_device, numbers = engine.to_device, iter(range(8))

    def spoilt(batch, device):
        (images, *rest), target = to_device(batch, device)
        images[0] = float("nan") if next(numbers) == 4 else images[0]  # in the second of three updates
        return (images, *rest), target

    monkeypatch.setattr(engine, "to_device", spoilt)
    codes, printed = train_two(config, tmp_path, zero(tmp_path, 2))
    assert codes == [0, 0] and "not finite: 1 of 3" in printed, printed
    assert all(value.isfinite().all() for part in ("model", "model_ema") for value in load(tmp_path)[part].values())


# Bad input: one clear line each


@contextmanager
def user_error_of(match):
    with pytest.raises(UserError, match=match) as caught:
        yield
    assert len(str(caught.value).splitlines()) == 1


def join_with(config, monkeypatch, environment, *arguments):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return join(get_config(parse_args(["--cfg", str(config), *arguments])))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, but 3 in this run; change --accum"),
        ({"train_micro_batch_size_per_gpu": 64}, "per_gpu is 64, but 4 in this run; change --batch-size"),
        ({"train_batch_size": 64}, "train_batch_size is 64, but 12 in this run"),
        ({"gradient_clipping": 1.0}, r"gradient_clipping is 1.0, but 5.0 in this run; change TRAIN.CLIP_GRAD"),
        ({"zero_optimization": {"stage": 0}}, "expected ZeRO stage 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offload to cpu or none"),
    ],
)
def test_deepspeed_settings_that_contradict_the_run_are_named(settings, words, config, tmp_path, monkeypatch):
    with user_error_of(match=words):
        join_with(config, monkeypatch, zero(tmp_path, 1, **settings))


def test_settings_of_deepspeed_that_cannot_be_read_are_an_error(config, tmp_path, monkeypatch):
    environment = zero(tmp_path, 1)
    for text in ("{", "{}"):
        (tmp_path / "zero1.json").write_text(text)
        with user_error_of(match="cannot use DeepSpeed's configuration"):
            join_with(config, monkeypatch, environment)
    with user_error_of(match="there is no"):
        join_with(config, monkeypatch, environment | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "no.json"})


def test_a_library_that_is_not_installed_is_named_with_the_command(config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with user_error_of(match=r"accelerate is not installed; install it with pip install -e '.\[scale\]'"):
        join_with(config, monkeypatch, {})


def test_only_the_stage_and_processes_of_a_checkpoint_resume_it(tmp_path):
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 2}})
    strategy = DeepSpeedStrategy(SimpleNamespace(deepspeed_plugin=plugin), World(0, 2))
    path = tmp_path / "ckpt_epoch_0.pth"
    for saved, words in (
        ({"ZeRO stage": 3, "processes": 2}, "of {'ZeRO stage': 3, .*}, but this run of {'ZeRO stage': 2, .*; use the"),
        ({"ZeRO stage": 2, "processes": 4}, "'processes': 4}, but this run of .*'processes': 2}"),
        ({"ZeRO stage": 2, "processes": 2}, "needs the folder ckpt_epoch_0.deepspeed beside it"),
        ({"state": {}, "param_groups": []}, "not of a run with DeepSpeed"),
    ):
        with user_error_of(match=words):
            strategy.load_state_dict({"optimizer": saved}, path)


def test_a_folder_of_deepspeed_stands_for_the_plain_file_beside_it(config, tmp_path, monkeypatch):
    folder, plain = tmp_path / "ckpt_epoch_0.deepspeed", tmp_path / "ckpt_epoch_0.pth"
    folder.mkdir()
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with user_error_of(match="convert it with python tools/dcp_to_pth.py"):
        _plain_file(str(folder))
    plain.touch()
    assert _plain_file(str(folder)) == str(plain)
    assert _plain_file("internimage_t_1k_224") == "internimage_t_1k_224"


# Files


def test_every_configuration_of_accelerate_names_settings_that_are_there():
    files = sorted(CONFIGS.glob("dist_8gpus_*.yaml"))
    assert {path.stem.removeprefix("dist_8gpus_") for path in files} == {
        *("ddp_fp16", "fsdp2", "zero1", "zero1_wo_loss_scale", "zero2_offload", "zero3_offload"),
        *("zero3_offload_wo_loss_scale", "zero3_wo_loss_scale"),
    }
    for path in files:
        values = load_config_from_file(str(path))  # Accelerate's own reader: it refuses unknown keys
        assert values.num_processes == 8
        if file := values.deepspeed_config.get("deepspeed_config_file"):
            settings = json.loads((ROOT / "classification" / file).read_text())
            assert path.stem.endswith(Path(file).stem.removeprefix("ds_config"))
            assert settings["zero_optimization"]["stage"] == int(re.search(r"zero(\d)", file)[1])
            assert ("loss_scale" in settings["fp16"]) == ("wo_loss_scale" in file)
            assert (settings["gradient_accumulation_steps"], settings["gradient_clipping"]) == (4, 5.0)


def test_launch_scripts_give_accelerate_its_file_and_srun_its_environment(tmp_path):
    environment = os.environ | {"PYTHON": "echo"}
    command = ["classification/dist_train_accelerate.sh", "2", "zero1.yaml", "recipe.yaml", "--eval"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    assert "--config_file zero1.yaml --num_processes 2 --num_machines 1" in printed
    assert printed.endswith("train_accelerate.py --cfg recipe.yaml --eval\n")
    (tmp_path / "python").write_text('#!/bin/sh\necho "ACCELERATE_MIXED_PRECISION=bf16 of $4"; echo HOME=/\n')
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$ACCELERATE_MIXED_PRECISION, $HOME: $@"\n')
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PYTHON": "python", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "classification/slurm_train_accelerate.sh", "gpu", "job", "zero1.yaml", "recipe.yaml", "16"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    assert printed.startswith(f"bf16 of zero1.yaml, {os.environ['HOME']}: --partition=gpu")
    assert "--ntasks=16" in printed and printed.endswith("--cfg recipe.yaml --launcher slurm\n")


def test_wandb_gets_the_figures_and_a_resumed_run_continues_its_own(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
    fake = ModuleType("wandb")
    fake.init = lambda **settings: calls.append(settings) or run
    fake.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "config.yaml").write_text("A: 1\n")
    for _ in range(2):
        tracker = Tracker(tmp_path, World(), "wandb")
        tracker.begin(0, 0)
        tracker.scalars(7, {"train/loss": 0.5})
        tracker.flush()
        tracker.close()
    first, *figures = calls[:3]
    assert (first["resume"], first["config"], first["dir"]) == ("allow", {"A": 1}, tmp_path)
    assert figures == [(7, {"train/loss": 0.5}), "finish"]
    assert calls[3:] == calls[:3]  # the same id

    def fail(**_):
        raise ValueError("no key")

    fake.init = fail
    tracker = Tracker(tmp_path, World(), "wandb")
    tracker.begin(0, 0)  # prints a line, and training goes on
    tracker.scalars(7, {"train/loss": 0.5})
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with user_error_of(match="wandb is not installed"):
        Tracker(tmp_path, World(), "wandb")
