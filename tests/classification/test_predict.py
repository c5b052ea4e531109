"""One-image prediction: the script as a user runs it, and its errors."""

import pytest
import torch
from PIL import Image
from yaml import safe_dump

from classification import inference
from classification.inference import Classifier, read_image
from classification.predict import main
from internimage import InternImage, InternImageMetaFormer
from internimage.errors import UserError

SHAPE = {"CHANNELS": 8, "DEPTHS": [1, 1, 1, 1], "GROUPS": [1, 1, 2, 2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, a checkpoint whose model always answers class 2, an image, and a data folder of four classes."""
    folder = tmp_path_factory.mktemp("predict")
    for name in ("ant", "bee", "cat", "dog"):
        (folder / "data" / "train" / name).mkdir(parents=True)
    config = {
        "DATA": {"DATASET": "folder", "DATA_PATH": str(folder / "data"), "IMG_SIZE": 32},
        "MODEL": {"TYPE": "intern_image", "INTERN_IMAGE": SHAPE},
    }
    (folder / "tiny.yaml").write_text(safe_dump(config))
    model = InternImage(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 2), num_classes=4)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([0.0, 0.0, 1.0, 0.5]).log_softmax(0) * 3
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "tiny.pth")
    Image.effect_noise((50, 40), 60).save(folder / "image.png")
    return folder


def run(folder, *options, image="image.png"):
    main(["--cfg", f"{folder}/tiny.yaml", "--checkpoint", f"{folder}/tiny.pth", f"{folder}/{image}", *options])


def test_it_prints_the_ranking_with_the_names_of_the_class_folders(folder, capsys):
    run(folder)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for _, name in rows][:2] == ["cat", "dog"]
    assert len(rows) == 4
    expected = (3 * torch.tensor([0.0, 0.0, 1.0, 0.5]).log_softmax(0)).softmax(0)[2]
    assert float(rows[0][0].rstrip("%")) == pytest.approx(100 * float(expected), abs=0.01)
    assert sum(float(value.rstrip("%")) for value, _ in rows) == pytest.approx(100, abs=0.05)


def test_it_writes_a_picture(folder, tmp_path, capsys):
    run(folder, "--output", f"{tmp_path}/new/prediction.png")
    assert Image.open(tmp_path / "new/prediction.png").size == (300, 240)  # enlarged
    assert "prediction.png" in capsys.readouterr().out


def test_given_class_names_win_and_without_any_classes_are_numbered(folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\nfour\n")
    run(folder, "--class-names", f"{tmp_path}/names.txt")
    assert capsys.readouterr().out.splitlines()[0].endswith("three")
    run(folder, "--opts", "DATA.DATA_PATH", "nowhere")
    assert capsys.readouterr().out.splitlines()[0].endswith("class 2")


def test_a_released_model_gets_the_names_of_imagenet(folder, tmp_path, monkeypatch, capsys):
    model = InternImage(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 2), num_classes=1000)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data[0] = 5.0
    torch.save(model.state_dict(), tmp_path / "t.pth")
    monkeypatch.setattr(inference, "create_model", lambda name, pretrained: model)  # a small one of 1000 classes
    options = ["--model", "internimage_t_1k_224", "--checkpoint", f"{tmp_path}/t.pth"]
    main([*options, "--image", f"{folder}/image.png"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "tench, Tinca tinca" in lines[0]


def test_the_model_that_also_takes_place_and_date_is_asked_with_zeros_for_unknown():
    torch.manual_seed(0)
    model = InternImageMetaFormer(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 2, 2), num_classes=4).eval()
    images = torch.rand(2, 3, 32, 32)
    logits = Classifier(model, None, [], None, torch.device("cpu")).logits(images)
    with torch.inference_mode():
        assert torch.equal(logits, model(images, torch.zeros(2, 4), torch.zeros(2, 3)))


def errors_of(capsys, call, *args, **kwargs):
    with pytest.raises(SystemExit) as stop:
        call(*args, **kwargs)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_an_unknown_suffix_and_no_image_are_one_line_errors_before_the_model_is_loaded(capsys):
    for name in ("cat.xyz", "cat.psd"):
        line = errors_of(capsys, main, ["--model", "no_model", "cat.jpg", "--output", name])
        assert f"{name} cannot be written" in line
    assert "image" in errors_of(capsys, main, ["--model", "no_model"])


def test_a_missing_image_is_a_one_line_error(folder, capsys):
    assert "no image at" in errors_of(capsys, run, folder, image="nothing.png")


def test_a_damaged_image_is_a_one_line_error(folder, tmp_path):
    for content in (b"", b"no image at all", (folder / "image.png").read_bytes()[:500]):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.png cannot be read as an image") as error:
            read_image(tmp_path / "bad.png")
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_is_a_one_line_error(folder, capsys):
    line = errors_of(capsys, run, folder, "--opts", "MODEL.INTERN_IMAGE.CHANNELS", "16")
    assert "tiny.pth" in line


def test_a_truncated_checkpoint_is_a_one_line_error(folder, tmp_path, capsys):
    (tmp_path / "cut.pth").write_bytes((folder / "tiny.pth").read_bytes()[:2000])
    line = errors_of(capsys, run, folder, "--checkpoint", f"{tmp_path}/cut.pth")
    assert "cut.pth is not a readable checkpoint" in line


def test_a_config_without_checkpoint_an_unknown_model_and_wrong_class_names_are_one_line_errors(
    folder, tmp_path, capsys
):
    image = ["--image", f"{folder}/image.png"]
    assert "--config needs --checkpoint" in errors_of(capsys, main, ["--cfg", f"{folder}/tiny.yaml", *image])
    assert "internimage_t_1k_224" in errors_of(capsys, main, ["--model", "internimage_t_1k_225", *image])
    (tmp_path / "names.txt").write_text("one\n")
    line = errors_of(capsys, run, folder, "--class-names", f"{tmp_path}/names.txt")
    assert "1 class names, but the model has 4 classes" in line
