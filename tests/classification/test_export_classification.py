"""classification/export.py: from options to a checked file that says how images are prepared."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from classification.export import main
from internimage import InternImageMetaFormer
from internimage.export.spec import Logits

CONFIG = """
DATA: {DATASET: folder, IMG_SIZE: 64}
MODEL:
  TYPE: intern_image
  NUM_CLASSES: 4
  INTERN_IMAGE: {CHANNELS: 16, DEPTHS: [1, 1], GROUPS: [1, 2]}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_an_exported_classifier_says_how_images_are_prepared(config, pictures, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("bag\nboot\ncoat\ndress\n")
    output = tmp_path / "deep" / "model.onnx"
    words = ["--cfg", config, "--random-weights", "--class-names", names, "--images", pictures, "--output", output]
    main([*map(str, words), "--static", "--batch", "2", "--core", "deform_conv", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| 2 x 3 x 64 x 64 | real |" in printed and "| onnx (deform_conv) |" in printed
    metadata = {item.key: item.value for item in onnx.load(output).metadata_props}
    assert json.loads(metadata["class_names"]) == ["bag", "boot", "coat", "dress"]
    assert json.loads(metadata["size"]) == [64, 64] and metadata["task"] == "classification"
    assert json.loads(metadata["mean"])[0] == pytest.approx(0.485) and metadata["interpolation"] == "bicubic"


def test_the_file_asked_for_is_the_int8_one_and_its_accuracy_is_reported(config, pictures, tmp_path, capsys):
    output, classes = tmp_path / "model.onnx", tmp_path / "classes"
    for index in range(4):
        folder = classes / str(index)
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes((pictures / "0.png").read_bytes())
    words = ["--cfg", config, "--random-weights", "--images", pictures, "--output", output, "--static", "--int8"]
    main([*map(str, words), "--repeats", "0", "--batch", "3", "--validation", str(classes)])
    files = (output, tmp_path / "model.float32.onnx")
    kinds = [{node.op_type for node in onnx.load(path).graph.node} for path in files]
    assert ["QuantizeLinear" in kind for kind in kinds] == [True, False]
    printed = capsys.readouterr().out
    assert "model.onnx: int8" in printed
    rows = [line for line in printed.splitlines() if line.endswith(" | 4 |")]
    # Four copies of one picture, one in each class: every model is right once.
    assert [row.split(" | ")[1] for row in rows] == ["25.00%"] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "missing.pth"], "missing.pth"),
        (["--random-weights", "--checkpoint", "model.pth"], "exclude each other"),
        (["--random-weights", "--images", "missing.jpg"], "missing.jpg"),
        (["--random-weights", "--size", "8"], "--size"),
    ],
)
def test_mistakes_end_in_one_line(words, message, config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--cfg", str(config), "--output", str(tmp_path / "model.onnx"), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_unknown_places_and_dates_are_zeros():
    torch.manual_seed(0)
    model = InternImageMetaFormer(channels=16, depths=[1, 1], groups=[1, 2], num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        (logits,) = Logits(model)(images)
        assert torch.equal(logits, model(images, torch.zeros(2, 4), torch.zeros(2, 3)))
