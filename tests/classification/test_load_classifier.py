"""Classifiers by their checkpoint or their name alone: `internimage.load`, the command, and the scripts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from quickstart import quick_start
from tiny_training import make_images, run_here, user_error, write_config

import internimage
from classification.inference import add_model_arguments, load_classifier, read_image
from classification.predict import main as predict_script
from classification.train import main as train_script
from internimage.__main__ import main
from internimage.checkpoint import load_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short training with `--opts`, whose data set and YAML file are gone."""
    folder = tmp_path_factory.mktemp("run")
    data = make_images(folder / "data")
    config = write_config(folder / "tiny.yaml", data, {"TRAIN": {"EPOCHS": 1, "EMA": {"ENABLE": False}}})
    run_here(config, folder, "--opts", "DATA.IMG_SIZE", "48", "AUG.MEAN", "[0.1, 0.2, 0.3]")
    config.unlink()
    (data / "train").rename(folder / "moved")
    return folder / "tiny"


@pytest.fixture(scope="module")
def image(run):
    return run.parent / "data" / "val" / "class1" / "0.png"


def test_the_quick_start_runs_on_the_folder_of_a_training(run, image, capsys):
    exec(quick_start("Classification", run, image), {})
    assert "class1" in capsys.readouterr().out


def test_a_checkpoint_brings_its_settings_and_the_names_of_its_classes(run, image):
    model = internimage.load(run / "ckpt_epoch_0.pth", device="cpu")
    assert model.class_names == ["class0", "class1", "class2", "class3"]
    pixels = read_image(image)
    assert model.classifier.transform(pixels).shape == (3, 48, 48)
    black = model.classifier.transform(Image.new("RGB", (32, 32)))
    assert torch.allclose(black[:, 0, 0] * torch.tensor((0.229, 0.224, 0.225)), -torch.tensor((0.1, 0.2, 0.3)))
    (result,) = model.predict(image, top=2)
    logits = model.classifier.logits(model.classifier.transform(pixels)[None])[0]
    expected = logits.softmax(0).topk(2)
    assert result.labels.tolist() == expected.indices.tolist()
    assert np.allclose(result.scores, expected.values)
    assert result.names == [model.class_names[label] for label in result.labels]


def test_the_command_writes_pictures_and_json_of_a_folder_and_goes_on_after_a_damaged_file(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    folder = run.parent / "data" / "val"
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path), str(folder), "--checkpoint", str(run), "--output", str(tmp_path / "new")])
    assert stop.value.code == "1 of the given files could not be read"  # printed by Python, with exit code 1
    assert "bad.png cannot be read as an image" in capsys.readouterr().err
    entries = json.loads((tmp_path / "new" / "predictions.json").read_text())
    assert len(entries) == 24
    assert {entry["source"] for entry in entries} == {str(path) for path in folder.rglob("*.png")}
    assert all((tmp_path / "new" / entry["picture"]).is_file() for entry in entries)


def test_the_scripts_take_a_checkpoint_alone(run, image, tmp_path, capsys):
    checkpoint = str(run / "ckpt_epoch_best.pth")
    predict_script(["--checkpoint", checkpoint, "--image", str(image)])
    assert "class1" in capsys.readouterr().out
    main(["evaluate", "--checkpoint", str(run), "--opts", "DATA.NUM_WORKERS", "0"])
    accuracy = load_file(checkpoint)["max_accuracy"]
    assert f"validation: top-1 {accuracy:.3f}%" in capsys.readouterr().out
    main(["flops", "--config", str(run / "config.yaml")])
    count = sum(value.numel() for name, value in load_file(checkpoint)["model"].items() if ".running_" not in name)
    found = f"config: {count / 1e6:.2f} M parameters, 3.3 MFLOPs at 48 x 48"  # of the run's 4 classes, not of 1000
    assert found in capsys.readouterr().out and count < 0.45e6
    with user_error(capsys, "give --cfg FILE or --model NAME; only --eval --resume CHECKPOINT"):
        train_script(["--resume", checkpoint])
    with user_error(capsys, "give --checkpoint FILE, or --model NAME"):
        predict_script(["--image", str(image)])


def test_other_weights_need_the_configuration_and_may_be_of_the_original_project(run, image, tmp_path, capsys):
    content = load_file(run / "ckpt_epoch_best.pth")
    torch.save(content["model"], tmp_path / "bare.pth")
    arguments = ["predict", str(image), "--checkpoint", str(tmp_path / "bare.pth"), "--output", str(tmp_path / "new")]
    with user_error(capsys, "give its configuration as well"):
        main(arguments)
    main([*arguments, "--config", str(run / "config.yaml")])
    assert "class1" in (tmp_path / "new" / "predictions.json").read_text() or "class 1" in capsys.readouterr().out
    # The original project saves the configuration as a mapping, with keys of its own run.
    mapping = {
        "DATA": {"IMG_SIZE": 48, "DATASET": "folder"},
        "MODEL": {"TYPE": "intern_image", "INTERN_IMAGE": {"CHANNELS": 16, "DEPTHS": [1, 1, 1, 1]}, "RESUME": "x"},
        "EVAL_MODE": False,
        "LOCAL_RANK": 3,
    }
    mapping["MODEL"]["INTERN_IMAGE"]["GROUPS"] = [1, 2, 4, 8]
    torch.save({"model": content["model"], "config": mapping}, tmp_path / "original.pth")
    model = internimage.load(tmp_path / "original.pth")
    assert model.class_names == ["class 0", "class 1", "class 2", "class 3"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("MODEL: {TYPE: resnet}", "MODEL.TYPE is 'resnet'"),
        ("!!python/object/apply:os.system [exit]", "is not valid YAML"),
        ("NO_SUCH: {KEY: 1}", "unknown key NO_SUCH.KEY"),
    ],
)
def test_a_bad_configuration_in_a_checkpoint_is_said(config, words, run, tmp_path):
    content = load_file(run / "ckpt_epoch_best.pth")
    torch.save({"model": content["model"], "config": config}, tmp_path / "bad.pth")
    with pytest.raises(internimage.UserError) as error:
        internimage.load(tmp_path / "bad.pth")
    assert words in str(error.value) and "bad.pth" in str(error.value)


def test_a_released_name_loads_a_local_file_with_the_names_of_imagenet(tmp_path, monkeypatch):
    name = "flash_intern_image_t_1k_224"
    with torch.device("meta"):
        state = internimage.create_model(name).state_dict()
    # A small file: every tensor is one zero, expanded.
    zeros = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path))
    published = next(r.checkpoint for r in internimage.zoo.releases() if r.name == name)
    torch.save(zeros, tmp_path / published.rpartition("/")[2])
    model = internimage.load(name, device="cpu")
    assert model.class_names[0].startswith("tench") and len(model.class_names) == 1000
    assert model.classifier.config.DATA.IMG_SIZE == 224
    assert not model.model.head.weight.any()


def test_the_class_names_of_the_command_line_win(run, tmp_path):
    import argparse

    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    arguments = ["--checkpoint", str(run), "--class-names", str(tmp_path / "names.txt")]
    assert load_classifier(parser.parse_args(arguments)).class_names == ["ant", "bee", "cat", "dog"]
