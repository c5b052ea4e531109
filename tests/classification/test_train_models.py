"""Models from configurations: the released architectures, and where their weights start."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from tiny_training import MODEL, write_config

from classification.config import get_config, parse_args
from classification.models import build_model
from classification.trainer.resume import initialise
from internimage.errors import CheckpointError
from internimage.imagenet import in22k_to_1k

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("accelerate", "places365", "places205")  # not released
CONFIGS = [p for p in sorted((ROOT / "classification/configs").rglob("*_*.yaml")) if p.parent.name not in OTHERS]
KEYS = {}
for name in ("state_dict_keys", "flash_state_dict_keys"):
    KEYS |= json.loads(gzip.decompress((ROOT / "tests" / "data" / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_released_configuration_builds_with_the_released_keys(path):
    config = get_config(parse_args(["--cfg", str(path)]))
    with torch.device("meta"):
        model = build_model(config, 8142 if config.DATA.DATASET == "inat18" else None)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    # H is listed at one resolution; the iNaturalist model is H with other classes and further inputs.
    stem = path.stem.replace("h_22kto1k_384", "h_22kto1k_640")
    if "inat18" in stem:
        assert shapes["head.weight"][0] == 8142
        assert any(key.startswith("meta_head_1.") for key in shapes)
    else:
        assert shapes == KEYS[stem]


def tiny(tmp_path, classes, **model):
    path = write_config(tmp_path / "tiny.yaml", tmp_path, {"MODEL": MODEL | model})
    return build_model(get_config(parse_args(["--cfg", str(path)])), classes)


def test_22k_to_1k_fine_tuning_starts_from_the_head_of_the_same_classes(tmp_path):
    big, small, notices = tiny(tmp_path, 21841), tiny(tmp_path, 1000), []
    torch.save({"model": big.state_dict()}, tmp_path / "22k.pth")
    initialise(small, tmp_path / "22k.pth", notices.append)
    assert torch.equal(small.head.weight, big.head.weight[in22k_to_1k()])
    assert torch.equal(small.patch_embed.conv1.weight, big.patch_embed.conv1.weight)
    assert len(notices) == 1
    assert "21841" in notices[0]


def test_a_fresh_small_head_can_be_asked_for(tmp_path):
    source, model = tiny(tmp_path, 4), tiny(tmp_path, 4)
    own = model.head.weight.detach().clone()
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    initialise(model, tmp_path / "weights.pth", lambda _: None, rand_init_head=True)
    torch.testing.assert_close(model.head.weight.detach(), 0.001 * own)


def test_initialising_from_another_model_names_the_file(tmp_path):
    torch.save({"model": tiny(tmp_path, 4, DROP_PATH_TYPE="uniform").state_dict()}, tmp_path / "other.pth")
    wide = tiny(tmp_path, 4, INTERN_IMAGE={"CHANNELS": 32, "DEPTHS": [1, 1, 1, 1], "GROUPS": [1, 2, 4, 8]})
    with pytest.raises(CheckpointError, match="other.pth"):
        initialise(wide, tmp_path / "other.pth", print)
