"""train.py as a user runs it: train, evaluate, time, fine-tune, and mistakes in doing so."""

import csv
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import TRAIN, finish, history, make_images, run_here, start, user_error, write_config
from yacs.config import CfgNode

from classification import train
from classification.config import get_config, parse_args
from classification.models import build_model
from classification.trainer import engine


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, started from outside the repository: (configuration file, output root, run folder)."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "tiny.yaml", make_images(folder / "data"), {"REPORT": True})
    (printed,) = finish(start(*TRAIN, "--cfg", "tiny.yaml", "--output", "out", cwd=folder))
    (folder / "printed.txt").write_text(printed)
    return config, folder / "out", folder / "out" / "tiny"


def top1_lines(text):
    return re.findall(r"(validation|averaged weights): top-1 ([\d.]+)%", text)


def model_of(config, **overrides):
    options = [str(part) for pair in overrides.items() for part in (pair[0].replace("__", "."), pair[1])]
    arguments = ["--cfg", str(config)] + (["--opts", *options] if options else [])
    return build_model(get_config(parse_args(arguments)), 4)


def test_a_run_leaves_checkpoints_history_log_and_configuration(finished):
    _, _, folder = finished
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {"ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "ckpt_epoch_best.pth", "ckpt_epoch_ema_best.pth",
                     "config.yaml", "history.jsonl", "log.txt", "report", "run.lock"}  # fmt: skip
    assert [record["epoch"] for record in history(folder)] == [0, 1]


def test_the_summary_names_the_best_accuracy_and_the_folder(finished):
    config, _, folder = finished
    summary = (config.parent / "printed.txt").read_text().splitlines()[-1]
    best = max(record["top1"] for record in history(folder))
    assert f"best top-1 {best:.2f}%" in summary
    assert "out/tiny" in summary


def test_a_run_starts_with_its_real_learning_rate_and_its_updates_and_a_warning_if_these_are_few(finished):
    rate, warning, first = (finished[0].parent / "printed.txt").read_text().splitlines()[1:4]
    assert rate.startswith(
        "learning rate 0.000313 (TRAIN.BASE_LR 0.02 x 8 images per update / 512); 8 updates per epoch"
    )
    assert rate.endswith("16 in all, warm-up of 8") and warning.startswith("warning: too short") and "epoch 0" in first


def test_the_configuration_of_a_run_has_the_number_of_its_classes(finished):
    assert CfgNode.load_cfg((finished[2] / "config.yaml").read_text()).MODEL.NUM_CLASSES == 4


def test_checkpoints_load_safely_and_have_the_original_keys(finished):
    checkpoint = torch.load(finished[2] / "ckpt_epoch_1.pth", weights_only=True)
    assert {"model", "optimizer", "lr_scheduler", "scaler", "epoch", "max_accuracy", "config", "model_ema"} <= set(
        checkpoint
    )
    assert checkpoint["epoch"] == 1
    assert CfgNode.load_cfg(checkpoint["config"]).MODEL.NAME == "tiny"


def test_tensorboard_has_loss_rate_norm_accuracy_and_speed(finished):
    events = EventAccumulator(str(finished[2]))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second"} <= tags
    assert {"epoch/top1", "epoch/top5", "epoch/top1_ema", "epoch/top5_ema", "epoch/images_per_second"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == [4, 8, 12, 16]


def test_a_run_may_begin_with_an_evaluation(finished, capsys):
    config, output, folder = finished
    run_here(config, output, "--opts", "EVAL_FIRST", "True", "REPORT", "False")
    printed, last = capsys.readouterr().out, history(folder)[-1]
    assert "nothing left to do" in printed
    assert top1_lines(printed) == [
        ("validation", f"{last['top1']:.3f}"),
        ("averaged weights", f"{last['top1_ema']:.3f}"),
    ]


def test_evaluation_prints_what_training_printed(finished, capsys):
    config, output, folder = finished
    last = history(folder)[-1]
    run_here(config, output, "--eval", "--resume", str(folder / "ckpt_epoch_1.pth"))
    assert top1_lines(capsys.readouterr().out) == [
        ("validation", f"{last['top1']:.3f}"),
        ("averaged weights", f"{last['top1_ema']:.3f}"),
    ]


def test_predictions_and_the_accuracy_of_each_class_are_written(finished, tmp_path, capsys):
    config, output, folder = finished
    run_here(config, output, "--eval", "--resume", str(folder), "--predictions", str(tmp_path / "new/p.csv"))
    with open(tmp_path / "new/p.csv") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "new/p_report/classes.csv") as file:
        classes = {row["class"]: row for row in csv.DictReader(file)}
    assert [Path(row["image"]).parent.name for row in rows] == [row["label"] for row in rows] and len(rows) == 24
    right = sum(row["label"] == row["predicted"] for row in rows)
    # Those of the averaged weights, which are evaluated last.
    assert top1_lines(capsys.readouterr().out)[1] == ("averaged weights", f"{100 * right / 24:.3f}")
    for name, row in classes.items():
        mine = [r["predicted"] == name for r in rows if r["label"] == name]
        assert (row["images"], float(row["top-1 accuracy (%)"])) == ("6", pytest.approx(100 * sum(mine) / 6, abs=0.01))


def test_a_run_leaves_curves_tables_and_pictures_of_its_last_evaluation(finished):
    _, _, folder = finished
    last = history(folder)[-1]
    names = ["classes", "confusion_matrix", "curves", "precision_recall", "predictions"]
    assert sorted(path.stem for path in (folder / "report").glob("*.png")) == names
    tables = {}
    for name in names[:-1]:
        with open(folder / f"report/{name}.csv") as file:
            tables[name] = list(csv.DictReader(file))
    assert [(row["epoch"], float(row["top1"])) for row in tables["curves"]] == [
        (str(record["epoch"] + 1), pytest.approx(record["top1"], rel=1e-5)) for record in history(folder)
    ]
    # Of the averaged weights, which are evaluated last; the classes have equally many images.
    shares = [float(row["top-1 accuracy (%)"]) for row in tables["classes"]]
    assert sum(shares) / 4 == pytest.approx(last["top1_ema"], rel=1e-5)
    right = sum(int(row["images"]) for row in tables["confusion_matrix"] if row["truth"] == row["predicted"])
    assert 100 * right / 24 == pytest.approx(last["top1_ema"])
    assert len(tables["precision_recall"]) == 101
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["images"]) == {f"report/{name}" for name in names}


def test_a_run_without_progress_ends_early_and_does_not_go_on(finished, tmp_path, capsys):
    frozen = {"EPOCHS": 9, "WARMUP_EPOCHS": 0, "BASE_LR": 0.0, "MIN_LR": 0.0, "EARLY_STOPPING": 1}
    config = write_config(tmp_path / "early.yaml", finished[0].parent / "data", {"TRAIN": frozen})
    for _ in range(2):
        run_here(config, tmp_path)
        printed = capsys.readouterr().out
        assert "no better top-1 for 1 epochs" in printed
        assert [record["epoch"] for record in history(tmp_path / "early")] == [0, 1]
    assert "nothing left to do" in printed


def test_a_released_style_checkpoint_evaluates(finished, tmp_path, capsys):
    config, output, folder = finished
    weights = torch.load(folder / "ckpt_epoch_1.pth", weights_only=True)["model"]
    released = tmp_path / "released.pth"
    torch.save({"model": OrderedDict(weights), "optimizer": {}, "config": CfgNode({"A": CfgNode({"B": 1})})}, released)
    run_here(config, output, "--eval", "--pretrained", str(released))
    assert top1_lines(capsys.readouterr().out) == [("validation", f"{history(folder)[-1]['top1']:.3f}")]


def test_a_finished_run_started_again_has_nothing_left_to_do(finished, capsys):
    config, output, folder = finished
    before = (folder / "ckpt_epoch_1.pth").read_bytes()
    run_here(config, output)
    printed = capsys.readouterr().out
    assert "nothing left to do" in printed and "updates per epoch" not in printed and "warning" not in printed
    assert (folder / "ckpt_epoch_1.pth").read_bytes() == before
    assert [record["epoch"] for record in history(folder)] == [0, 1]


def test_throughput_names_rate_batch_and_device(finished, capsys, monkeypatch):
    config, output, _ = finished
    monkeypatch.setattr(train, "throughput", partial(train.throughput, seconds=0))
    run_here(config, output, "--throughput")
    assert re.search(r"throughput: [\d.]+ images/s with batch size 8 on cpu", capsys.readouterr().out)


def test_fine_tuning_takes_the_backbone_and_says_what_became_of_the_head(finished, tmp_path, capsys):
    _, _, folder = finished
    data = make_images(tmp_path / "data", classes=3)
    config = write_config(tmp_path / "tune.yaml", data, {"TRAIN": {"EPOCHS": 1, "BASE_LR": 0.0, "WARMUP_EPOCHS": 0,
                                                                   "MIN_LR": 0.0, "WEIGHT_DECAY": 0.0}})  # fmt: skip
    run_here(config, tmp_path / "out", "--pretrained", str(folder / "ckpt_epoch_1.pth"))
    assert "head has 4 classes, the model 3" in capsys.readouterr().out
    old = torch.load(folder / "ckpt_epoch_1.pth", weights_only=True)["model"]
    new = torch.load(tmp_path / "out/tune/ckpt_epoch_0.pth", weights_only=True)["model"]
    assert new["head.weight"].shape[0] == 3
    assert torch.equal(new["levels.0.blocks.0.dcn.offset.weight"], old["levels.0.blocks.0.dcn.offset.weight"])


@pytest.mark.parametrize(
    "options",
    [
        ["--accumulation-steps", "3", "--use-checkpoint", "--use-zero"],
        ["--amp", "bf16"],
        ["--amp", "fp16"],
        ["--opts", "TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.LR_SCHEDULER.NAME", "step"],
        ["--opts", "TRAIN.LR_SCHEDULER.NAME", "linear", "TRAIN.CLIP_GRAD", "None"],
        ["--opts", "TRAIN.LR_LAYER_DECAY", "True", "TRAIN.OPTIMIZER.DCN_LR_MUL", "0.1"],
        ["--opts", "AUG.MIXUP", "0", "AUG.CUTMIX", "0", "TRAIN.EMA.ENABLE", "False"],
    ],
    ids=lambda options: "-".join(options).removeprefix("--").replace("opts-", ""),
)
def test_an_epoch_runs_with(options, finished, tmp_path):
    extra = ["TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    options = [*options, *(extra if "--opts" in options else ["--opts", *extra])]
    run_here(finished[0], tmp_path, *options)
    (record,) = history(tmp_path / "tiny")
    assert record["train_loss"] < 2.0


def test_mistakes_end_with_exit_code_2_and_one_line(finished, tmp_path, capsys):
    with user_error(capsys, "unknown key TRAIN.EPOCH;", "TRAIN.EPOCHS"):
        run_here(finished[0], tmp_path, "--opts", "TRAIN.EPOCH", "3")


def test_a_missing_data_path_is_named(finished, tmp_path, capsys):
    with user_error(capsys, str(tmp_path / "nowhere")):
        run_here(finished[0], tmp_path, "--data-path", str(tmp_path / "nowhere"))


def test_an_empty_class_folder_is_named(finished, tmp_path, capsys):
    data = make_images(tmp_path / "data")
    (data / "train" / "owl").mkdir()
    with user_error(capsys, str(data / "train" / "owl")):
        run_here(finished[0], tmp_path, "--data-path", str(data))


def test_a_corrupt_training_image_is_named_or_skipped(finished, tmp_path, capsys):
    data = make_images(tmp_path / "data")
    (data / "train" / "class0" / "3.png").write_bytes(b"\x89PNG broken")
    with user_error(capsys, str(data / "train" / "class0" / "3.png")):
        run_here(finished[0], tmp_path, "--data-path", str(data))
    run_here(finished[0], tmp_path, "--data-path", str(data), "--skip-bad-images", "--opts", "TRAIN.EPOCHS", "1")
    assert "bad training images replaced by this process: 1" in capsys.readouterr().out


@pytest.mark.parametrize("mode", [["--eval", "--resume"], ["--eval", "--pretrained"], ["--pretrained"], ["--resume"]])
def test_a_checkpoint_of_another_model_is_refused(mode, finished, tmp_path, capsys):
    other = model_of(finished[0], MODEL__INTERN_IMAGE__CHANNELS=32)
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    with user_error(capsys, "other.pth"):
        run_here(finished[0], tmp_path, *mode, str(tmp_path / "other.pth"))


@pytest.mark.parametrize("mode", [["--eval", "--resume"], ["--pretrained"], ["--resume"]])
def test_a_truncated_checkpoint_is_refused(mode, finished, tmp_path, capsys):
    whole = (finished[2] / "ckpt_epoch_1.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with user_error(capsys, "cut.pth", "truncated"):
        run_here(finished[0], tmp_path, *mode, str(tmp_path / "cut.pth"))


def test_evaluation_without_weights_is_refused(finished, tmp_path, capsys):
    with user_error(capsys, "--resume FILE"):
        run_here(finished[0], tmp_path, "--eval")


def test_an_output_folder_that_cannot_be_made_is_named(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with user_error(capsys, str(tmp_path / "file"), "--output"):
        run_here(finished[0], tmp_path / "file")


@pytest.mark.parametrize("key", ["TRAIN.OPTIMIZER.NAME", "TRAIN.LR_SCHEDULER.NAME", "MODEL.TYPE"])
def test_unknown_names_are_refused(key, finished, tmp_path, capsys):
    with user_error(capsys, key):
        run_here(finished[0], tmp_path, "--opts", key, "adamm")


def test_losses_that_are_not_finite_stop_the_run_and_keeps_the_good_checkpoints(finished, tmp_path, capsys):
    config, output, _ = finished
    run_here(config, tmp_path, "--opts", "TRAIN.EPOCHS", "1")
    good = (tmp_path / "tiny" / "ckpt_epoch_0.pth").read_bytes()
    changes = ("TRAIN.BASE_LR", "1e30", "TRAIN.CLIP_GRAD", "None", "TRAIN.MAX_BAD_UPDATES", "3")
    with user_error(capsys, "updates in a row", "bad_batch_epoch_1_step", "TRAIN.BASE_LR"):
        run_here(config, tmp_path, "--opts", *changes)
    assert sorted(path.name for path in (tmp_path / "tiny").glob("ckpt_epoch_[0-9]*")) == ["ckpt_epoch_0.pth"]
    assert (tmp_path / "tiny" / "ckpt_epoch_0.pth").read_bytes() == good


def test_a_validation_loss_that_is_not_finite_leaves_no_checkpoint_of_its_epoch(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(engine, "evaluate_all", lambda *_: ({"loss": float("nan"), "top1": 0.0}, None))
    with user_error(capsys, "validation loss is nan after epoch 0"):
        run_here(finished[0], tmp_path)
    assert not list((tmp_path / "tiny").glob("*.pth"))


def test_a_full_disk_costs_the_log_and_not_the_run(finished, tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "log.txt").symlink_to("/dev/full")
    run_here(finished[0], tmp_path, "--opts", "TRAIN.EPOCHS", "1")
    printed = capsys.readouterr()
    assert printed.err.count("No space left on device; training goes on") == 1
    assert "epoch 0/1 training: mean loss" in printed.out
    assert (tmp_path / "tiny" / "ckpt_epoch_0.pth").exists()
