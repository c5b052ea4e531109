"""`python -m classification.demo`, its real commands on the first 10 images of each class."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from classification import train
from classification.config import get_config, parse_args
from classification.data import build_transform
from classification.demo import __main__ as demo
from classification.models import build_model
from demo.steps import ROOT
from demo.unpack import SHEETS, unpack
from internimage.__main__ import main as internimage
from ops_dcnv3 import DCNv3

CONFIG = "classification/configs/demo.yaml"


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """The first ten images of every sheet, unpacked."""
    folder = tmp_path_factory.mktemp("small")
    sums = ""
    for path in sorted(SHEETS.glob("*/*.png")):
        name = path.relative_to(SHEETS)
        (folder / "sheets" / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as sheet:
            sheet.crop((0, 0, 10 * 28, 28)).save(folder / "sheets" / name)
        sums += f"{hashlib.sha256((folder / 'sheets' / name).read_bytes()).hexdigest()}  {name}\n"
    (folder / "sheets" / "SHA256SUMS").write_text(sums)
    assert unpack(folder / "data", folder / "sheets") == 200
    return folder / "data"


def test_the_demo_model_is_an_internimage_with_dcnv3_in_every_block_of_four_levels():
    model = build_model(get_config(parse_args(["--cfg", str(ROOT / CONFIG)])), 10)
    assert len(model.levels) == 4
    assert all(isinstance(block.dcn, DCNv3) for level in model.levels for block in level.blocks)


def test_the_demo_trains_evaluates_and_draws(small_data, tmp_path, monkeypatch, capsys):
    scripts = {"train.py": train.main, "-m": lambda words: internimage(words[1:]), "unpack.py": lambda words: None}

    def run_in_this_process(script, *arguments):
        print(f"$ {script}")
        scripts[Path(script).name]([str(argument) for argument in arguments])

    monkeypatch.setattr(demo, "run", run_in_this_process)
    # Most of the time goes into 17 figures.
    monkeypatch.setattr("internimage.visualization.pictures.render", lambda figure: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(demo, "IMAGES", small_data / "val")
    monkeypatch.chdir(ROOT)
    options = ["--output", str(tmp_path), "--opts", "DATA.DATA_PATH", str(small_data), "TRAIN.EPOCHS", "1"]
    demo.main([*options, "DATA.NUM_WORKERS", "0"])

    printed = capsys.readouterr().out
    (record,) = map(json.loads, (tmp_path / "demo/history.jsonl").read_text().splitlines())
    assert (
        f"top-1 {record['top1']:.3f}%" in printed.rpartition("$ classification/train.py")[2]
    )  # --eval reproduces what training reported
    names = ("sampling_points", "mask_weights", "feature_pca", "class_activation")
    assert {path.stem for path in (tmp_path / "demo/pictures").iterdir()} == {
        "effective_receptive_field",
        *(f"{number}_0000_{name}" for number in range(4) for name in names),
    }
    assert len(list((tmp_path / "demo/report").glob("*.png"))) == 5


def test_a_step_that_fails_ends_the_demo_with_its_exit_code():
    with pytest.raises(SystemExit) as stop:
        demo.run("-c", "import sys; sys.exit(2)")
    assert stop.value.code == 2


def test_the_configuration_says_how_much_of_an_image_a_random_crop_keeps():
    for options, scale in ([], (0.6, 1.0)), (["--opts", "AUG.CROP_SCALE", "(0.2, 0.5)"], (0.2, 0.5)):
        config = get_config(parse_args(["--cfg", str(ROOT / CONFIG), *options]))
        assert build_transform(config, train=True).transforms[0].scale == scale
