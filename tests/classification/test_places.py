"""Places365 and Places205 in the layouts of their downloads: small trainings by the configurations, and class names."""

import re

import pytest
import torch
import yaml
from PIL import Image
from tiny_training import MODEL, ROOT, run_here

from classification.config import get_config, parse_args
from classification.data.places import read_places
from classification.models import build_model
from classification.train import main
from internimage.checkpoint import load_file
from internimage.errors import UserError

CONFIGS = ROOT / "classification/configs"
PAGE = ROOT / "docs/classification_data.md"
SCENES = ("airfield", "bus_station/indoor", "zen_garden")


def make_places(root, dataset):
    """Eight images of each of three scenes for training, two for evaluation."""
    for split, count in (("train", 8), ("val", 2)):
        lines = []
        for label, scene in enumerate(SCENES):
            for number in range(count):
                path = f"{scene[0]}/{scene}/{split}{number:08}.jpg"
                if dataset == "places205":
                    folder = "data/vision/torralba/deeplearning/images256"
                elif split == "train":
                    folder, path = "data_256_standard", f"/{path}"
                else:
                    folder, path = "val_256", f"Places365_val_{label}{number:07}.jpg"
                file = root / folder / path.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 36), (80 * label, 200 - 80 * label, 10 * number)).save(file)
                lines.append(f"{path} {label}\n")
        name = {"places365": "places365_{}.txt", "places205": "trainvalsplit_places205/{}_places205.csv"}[dataset]
        part = "train_standard" if (dataset, split) == ("places365", "train") else split
        (root / name.format(part)).parent.mkdir(exist_ok=True)
        (root / name.format(part)).write_text("".join(lines))
    if dataset == "places365":
        lines = [f"/{scene[0]}/{scene} {label}\n" for label, scene in enumerate(SCENES)]
        (root / "categories_places365.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    "name", ["places365/internimage_t_1ktoplaces365_224", "places205/internimage_h_22ktoplaces205_384"]
)
def test_a_small_copy_trains_resumes_and_evaluates_its_checkpoint(name, tmp_path, capsys):
    data = make_places(tmp_path / "data", name.partition("/")[0])
    small = {
        "BASE": [str(CONFIGS / f"{name}.yaml")],
        "DATA": {"DATA_PATH": str(data), "IMG_SIZE": 32, "BATCH_SIZE": 8, "NUM_WORKERS": 0},
        "MODEL": MODEL | {"PRETRAINED": str(tmp_path / "pretrained.pth")},
        "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-2, "EMA": {"ENABLE": False}, "USE_CHECKPOINT": False},
        "REPORT": False,
    }
    if "_h_" in name:
        small["MODEL"] = small["MODEL"] | {
            "INTERN_IMAGE": MODEL["INTERN_IMAGE"]
            | {"USE_CLIP_PROJECTOR": False, "DEPTHS": [1, 1, 3, 1], "LEVEL2_POST_NORM_BLOCK_IDS": [1, 2]}
        }
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small))
    torch.manual_seed(0)
    model = build_model(get_config(parse_args(["--cfg", str(config)])), 1000)
    torch.save({"model": model.state_dict()}, tmp_path / "pretrained.pth")
    run_here(config, tmp_path / "out", "--opts", "TRAIN.EPOCHS", "1")
    run_here(config, tmp_path / "out")
    out = capsys.readouterr().out
    assert re.search(r"resumed from \S*ckpt_epoch_0.pth; the next epoch is", out), out
    (last,) = (tmp_path / "out").rglob("ckpt_epoch_1.pth")
    saved = load_file(last)
    assert saved["class_names"] == list(SCENES)
    main(["--eval", "--resume", str(last), "--opts", "DATA.NUM_WORKERS", "0"])
    assert (
        f"top-1 {saved['accuracy'] if 'accuracy' in saved else saved['max_accuracy']:.3f}%" in capsys.readouterr().out
    )


def test_every_configuration_has_the_parameters_that_the_page_states(monkeypatch):
    monkeypatch.setattr("internimage.backbone.trunc_normal_", lambda tensor, **_: tensor)  # half the time of building
    rows = dict(re.findall(r"\[(places\d+/\w+)\]\(\S+\) \| ([\d,]+) \|", PAGE.read_text()))
    names = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("places*/*.yaml")}
    assert rows.keys() == names and len(names) == 4
    for name, stated in rows.items():
        config = get_config(parse_args(["--cfg", str(CONFIGS / f"{name}.yaml")]))
        with torch.device("meta"):
            model = build_model(config, int(config.DATA.DATASET.removeprefix("places")))
        assert sum(parameter.numel() for parameter in model.parameters()) == int(stated.replace(",", "")), name


def test_missing_classes_and_images_are_named(tmp_path):
    root = make_places(tmp_path, "places365")
    assert read_places(root, "places365", "train")[1] == list(SCENES)
    lines = (root / "categories_places365.txt").read_text().splitlines(keepends=True)
    (root / "categories_places365.txt").write_text("".join(lines[:2]))
    with pytest.raises(UserError, match="lacks class 2"):
        read_places(root, "places365", "val")
    (root / "places365_val.txt").write_text("Places365_val_1.jpg 0\n")
    with pytest.raises(UserError, match="Places365_val_1.jpg, which is not in .*val_256 or .*val_large"):
        read_places(root, "places365", "val")
    with pytest.raises(UserError, match="cannot read .*train_places205.csv"):
        read_places(root, "places205", "train")
