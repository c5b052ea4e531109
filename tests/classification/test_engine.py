"""One step, one epoch: what the engine computes, checked against plain PyTorch."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_training import MODEL, make_images, write_config
from torch import nn

from classification.config import get_config, parse_args
from classification.data import build_loaders
from classification.models import build_model
from classification.trainer.distributed import World
from classification.trainer.engine import Trainer, seed_everything
from classification.trainer.evaluation import evaluate
from classification.trainer.optimizer import build_optimizer, build_scheduler, learning_rate_scale
from classification.trainer.strategy import Strategy
from classification.trainer.tracking import EpochMeter, Tracker
from internimage.errors import UserError

WORLD = World()
PLAIN = ["AUG.MIXUP", "0", "AUG.CUTMIX", "0", "MODEL.DROP_PATH_RATE", "0", "TRAIN.WARMUP_EPOCHS", "0"]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    return write_config(folder / "tiny.yaml", make_images(folder / "data"), {"MODEL": MODEL})


def configure(config_file, *options):
    return get_config(parse_args(["--cfg", str(config_file), "--opts", *PLAIN, *options]))


def make_trainer(config_file, *options, batch_norm=True):
    config = configure(config_file, *options)
    seed_everything(WORLD.device, 0)
    model = build_model(config, 4)
    if not batch_norm:
        model.conv_head[1] = nn.Identity()
    return Trainer(config, Strategy(WORLD), model, build_loaders(config))


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.strategy.model.named_parameters()}


def train_one_epoch(trainer):
    return trainer.train_one_epoch(0, Tracker(None, WORLD)).summary()


def test_accumulated_batches_make_the_step_of_one_large_batch(config_file):
    # 64 images: 8 steps of 8 in groups of 2, or 4 steps of 16; the sampler deals the same images. Not AdamW, which
    # makes a step of nearly full length of a gradient that is nothing but rounding.
    sgd = ("TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.BASE_LR", "2")
    small = make_trainer(config_file, "TRAIN.ACCUMULATION_STEPS", "2", *sgd, batch_norm=False)
    large = make_trainer(config_file, "DATA.BATCH_SIZE", "16", *sgd, batch_norm=False)
    train_one_epoch(small), train_one_epoch(large)
    for name, value in weights(large).items():
        torch.testing.assert_close(weights(small)[name], value, rtol=0, atol=1e-6)  # measured 1e-7; steps of 2e-3


def test_an_incomplete_last_group_is_averaged_over_its_own_steps(config_file):
    # 8 steps in groups of 5 leave 3; with a learning rate of 0 their gradient can be computed afterwards.
    options = ["TRAIN.ACCUMULATION_STEPS", "5", "TRAIN.BASE_LR", "0", "TRAIN.MIN_LR", "0", "TRAIN.CLIP_GRAD", "None"]
    trainer = make_trainer(config_file, *options, batch_norm=False)
    train_one_epoch(trainer)
    last = list(trainer.loaders.train)[5:]
    loss = sum(trainer.criterion(trainer.strategy.model(images), target) for images, target in last) / 3
    for parameter, expected in zip(trainer.strategy.parameters, torch.autograd.grad(loss, trainer.strategy.parameters)):
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-6)


def test_gradients_are_clipped_to_the_configured_norm_and_reported_before(config_file):
    trainer = make_trainer(config_file, "TRAIN.CLIP_GRAD", "0.01")
    seen = []
    trainer.strategy.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in trainer.strategy.parameters]).norm().item())
    )
    figures = train_one_epoch(trainer)
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in seen)
    assert figures["grad_norm"] > 0.1


def test_frozen_levels_keep_their_weights_and_the_stem_learns(config_file):
    trainer = make_trainer(config_file, "TRAIN.OPTIMIZER.FREEZE_BACKBONE", "2")
    before = weights(trainer)
    train_one_epoch(trainer)
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("levels.0.", "levels.1.")) for name in changed)
    assert "patch_embed.conv1.weight" in changed
    assert "levels.2.blocks.0.mlp.fc1.weight" in changed


def test_gradient_checkpointing_changes_nothing(config_file):
    plain, checkpointed = (make_trainer(config_file, "TRAIN.USE_CHECKPOINT", flag) for flag in ("False", "True"))
    train_one_epoch(plain), train_one_epoch(checkpointed)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(checkpointed)[name], value, rtol=0, atol=1e-6)


def test_the_average_follows_the_weights(config_file):
    trainer = make_trainer(config_file, "TRAIN.EMA.DECAY", "0.75", "TRAIN.ACCUMULATION_STEPS", "8")
    before = weights(trainer)
    train_one_epoch(trainer)  # one update
    for name, average in trainer.strategy.ema.module.named_parameters():
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * weights(trainer)[name])


def test_soft_targets_of_mixup_and_smoothed_labels_are_what_they_say(config_file):
    logits, target = torch.randn(3, 4), torch.tensor([0, 2, 1])
    smoothed = make_trainer(config_file, "MODEL.LABEL_SMOOTHING", "0.2")
    soft = torch.full((3, 4), 0.05).scatter(1, target[:, None], 0.85)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed.criterion(logits, target), expected)
    mixing = make_trainer(config_file, "MODEL.LABEL_SMOOTHING", "0.2", "AUG.MIXUP", "0.8")
    torch.testing.assert_close(mixing.criterion(logits, soft), expected)


def test_learning_rates_grow_with_the_total_batch(config_file):
    config = configure(config_file, "DATA.BATCH_SIZE", "64", "TRAIN.ACCUMULATION_STEPS", "2", "TRAIN.BASE_LR", "1e-3")
    scale = learning_rate_scale(config, world_size=8)
    assert scale == 64 * 8 * 2 / 512
    optimizer = build_optimizer(config, nn.Linear(2, 2), scale, 1)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * scale}
    scheduler = build_scheduler(config, optimizer, scale, 10)
    assert scheduler.warmup_lr_init == pytest.approx(config.TRAIN.WARMUP_LR * scale)
    assert scheduler.lr_min == pytest.approx(config.TRAIN.MIN_LR * scale)


@pytest.mark.parametrize(("updates", "warmup", "warned"), [(20, 3, False), (19, 3, True), (20, 4, True)])
def test_a_run_of_few_updates_or_of_much_warm_up_gets_a_warning(updates, warmup, warned, config_file):
    config = configure(config_file, "TRAIN.EPOCHS", "10", "TRAIN.WARMUP_EPOCHS", str(warmup), "TRAIN.BASE_LR", "4e-3")
    rate, *warning = Trainer.describe_schedule(SimpleNamespace(config=config, scale=64 / 512, updates=updates))
    assert rate.startswith("learning rate 0.0005 (TRAIN.BASE_LR 0.004 x 64 images per update / 512)")
    assert f"{updates * 10} in all, warm-up of {updates * warmup}" in rate and bool(warning) == warned


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 10 epochs of 10 updates, 2 epochs of warm-up from 0.1 to 1, then down to 0.01
        ("cosine", {0: 0.1, 10: 0.55, 50: 0.01 + 0.99 * (1 + math.cos(math.pi * 0.5)) / 2, 100: 0.01}),
        ("linear", {0: 0.1, 10: 0.55, 20: 1.0, 60: 0.505, 100: 0.01}),
        ("step", {0: 0.1, 10: 0.55, 29: 1.0, 30: 0.5, 60: 0.25}),
    ],
)
def test_schedules_warm_up_and_decay_by_updates(name, expected, config_file):
    options = ["TRAIN.LR_SCHEDULER.NAME", name, "TRAIN.EPOCHS", "10", "TRAIN.WARMUP_EPOCHS", "2"]
    options += ["TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "3", "TRAIN.LR_SCHEDULER.DECAY_RATE", "0.5"]
    options += ["TRAIN.WARMUP_LR", "0.1", "TRAIN.MIN_LR", "0.01"]
    group = {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.5, "initial_lr": 1.0}
    optimizer = torch.optim.SGD([group], lr=1.0)
    scheduler = build_scheduler(configure(config_file, *options), optimizer, 1.0, 10)
    for update, rate in expected.items():
        scheduler.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rate, rel=1e-6), update


def test_layer_decay_reaches_the_optimizer_once(config_file):
    trainer = make_trainer(config_file, "TRAIN.LR_LAYER_DECAY", "True", "TRAIN.LR_LAYER_DECAY_RATIO", "0.5")
    trainer.state.scheduler.step_update(0)
    rates = {name: g["lr"] for g in trainer.strategy.optimizer.param_groups for name in g["names"]}
    assert rates["patch_embed.conv1.weight"] == pytest.approx(rates["head.weight"] * 0.5**3)
    assert rates["head.weight"] == pytest.approx(trainer.config.TRAIN.BASE_LR * learning_rate_scale(trainer.config, 1))


def test_evaluation_counts_hits_among_one_and_five():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9]])
    targets = torch.tensor([0, 4, 5, 5])
    figures = evaluate(nn.Identity(), [(logits[:3], targets[:3]), (logits[3:], targets[3:])], WORLD)
    assert figures["top1"] == 50.0
    assert figures["top5"] == 75.0
    assert figures["images"] == 4
    assert figures["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item())


def test_evaluation_of_chosen_columns_ignores_the_other_classes():
    logits = torch.tensor([[9.0, 1, 2, 3], [9, 3, 2, 1]])
    batches = [(logits, torch.tensor([0, 1]))]
    assert evaluate(nn.Identity(), batches, WORLD, columns=torch.tensor([3, 1]))["top1"] == 100.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_counted_and_not_averaged(bad):
    meter = EpochMeter(WORLD, bad_in_a_row=2)
    for value in (bad, 1.0, bad, bad):
        meter.add(torch.tensor(value), 4)
        meter.add_norm(torch.tensor(value))
    assert meter.flush()["loss"] == meter.summary()["grad_norm"] == 1.0
    assert (meter.skipped, meter.bad_in_a_row) == (3, 2)
    other = EpochMeter(WORLD)
    other.load_state_dict(meter.state_dict())
    assert (other.skipped, other.bad_in_a_row) == (3, 2)


def test_a_gradient_overflow_is_left_to_the_scaler():
    meter = EpochMeter(WORLD, skips_overflow=True)
    meter.add(torch.tensor(1.0), 4)
    meter.add_norm(torch.tensor(float("inf")))
    assert "grad_norm" not in meter.flush()
    assert meter.skipped == 0


def test_a_terminal_gets_a_bar_and_the_log_file_gets_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tracker = Tracker(tmp_path, WORLD)
    for step in tracker.steps(range(3), total=3, label="epoch 0/1"):
        tracker.note(f"step {step} in full", f"loss {step}")
    printed = capsys.readouterr()
    assert "epoch 0/1:" in printed.err
    assert "loss 2" in printed.err
    assert printed.out == ""
    assert [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        f"step {step} in full" for step in range(3)
    ]


def test_history_drops_epochs_that_run_again_and_lines_that_are_no_records(tmp_path, capsys):
    (tmp_path / "history.jsonl").write_bytes(b'{"epoch": 0}\n{"top1": 1}\n[]\n\xff\n{"epoch": 1}\n{"epo')
    tracker = Tracker(tmp_path, WORLD)
    tracker.begin(1, 10)
    tracker.epoch({"epoch": 1, "top1": 50.0})
    tracker.close()
    assert (tmp_path / "history.jsonl").read_text() == '{"epoch": 0}\n{"epoch": 1, "top1": 50.0}\n'
    assert "history.jsonl: skipping 4 of 6 lines" in capsys.readouterr().out


def test_seeds_differ_between_epochs_steps_and_ranks_and_repeat():
    def draw(*arguments):
        seed_everything(WORLD.device, *arguments)
        return torch.rand(1).item()

    draws = [draw(0, 0, 0), draw(0, 1, 0), draw(0, 0, 1), draw(1, 0, 0)]
    assert len(set(draws)) == 4
    assert draw(0, 1, 0) == draws[1]


def test_the_metadata_model_is_built_and_takes_metadata(config_file):
    model = build_model(configure(config_file, "MODEL.TYPE", "intern_image_meta_former"), 4)
    assert model(torch.randn(2, 3, 32, 32), torch.zeros(2, 4), torch.zeros(2, 3)).shape == (2, 4)


def test_impossible_architectures_are_user_errors(config_file):
    with pytest.raises(UserError, match="MODEL.INTERN_IMAGE"):
        build_model(configure(config_file, "MODEL.INTERN_IMAGE.GROUPS", "[1, 2]"))
    with pytest.raises(UserError, match="MODEL.INTERN_IMAGE"):
        build_model(configure(config_file, "MODEL.INTERN_IMAGE.GROUPS", "[3, 3, 3, 3]"))
