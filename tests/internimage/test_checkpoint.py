"""Every layout weights come in is read; what does not fit is said in one line."""

import gzip
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from yacs.config import CfgNode

from internimage import InternImage, InternImageMetaFormer
from internimage.checkpoint import (
    extract_state_dict,
    load_exact,
    load_file,
    load_pretrained,
    read_state_dict,
    save_atomic,
    to_current,
)
from internimage.errors import CheckpointError
from internimage.imagenet import in22k_to_1k

DATA = Path(__file__).parents[1] / "data"
SMALL = {"channels": 8, "depths": (1, 1, 2, 1), "groups": (1, 2, 2, 4)}


def small(num_classes=10, seed=0, **kwargs):
    """A small model whose every entry differs between seeds."""
    model = InternImage(**{**SMALL, "num_classes": num_classes, **kwargs})
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=generator) * 9)
    return model


def to_hugging_face(state):
    return {f"model.{key.replace('gamma', 'layer_scale')}": value for key, value in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def detector_layout(state):
    heads = {"neck.convs.0.weight": torch.ones(2), "roi_head.fc.weight": torch.ones(2)}
    return {f"backbone.{key}": value for key, value in state.items()} | heads


def key_lists():
    lists = {}
    for name in ("state_dict_keys.json.gz", "flash_state_dict_keys.json.gz"):
        lists |= json.loads(gzip.decompress((DATA / name).read_bytes()))
    return lists


LAYOUTS = {
    "bare": lambda state: state,
    "classification": lambda state: {"model": state, "epoch": 3},
    "mm": lambda state: {"meta": {}, "state_dict": state},
    "deepspeed": lambda state: {"module": state, "dp_world_size": 8},
    "data parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled data parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "mm backbone": lambda state: {"state_dict": {f"backbone.{key}": value for key, value in state.items()}},
    "hugging face": to_hugging_face,
    "hugging face, data parallel": lambda state: {f"module.{k}": v for k, v in to_hugging_face(state).items()},
    "mm with averaging": lambda state: {
        "state_dict": state | {f"ema_{key.replace('.', '_')}": value + 1 for key, value in state.items()}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(layout, tmp_path):
    state = small(layer_scale=1.0).state_dict()
    torch.save(LAYOUTS[layout](dict(state)), tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), state)


@pytest.mark.parametrize("name", key_lists())
@pytest.mark.parametrize("layout", ["hugging face, data parallel", "mm with averaging"])
def test_the_released_key_lists_survive_conversion_on_the_meta_device(name, layout):
    state = {key: torch.empty(shape, device="meta") for key, shape in key_lists()[name].items()}
    current = extract_state_dict(LAYOUTS[layout](state))
    assert {key: list(value.shape) for key, value in current.items()} == key_lists()[name]


def test_a_released_style_training_checkpoint_reads_without_running_its_objects(tmp_path):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    config = CfgNode({"MODEL": {"NAME": "intern_image", "DEPTHS": [1, 1, 2, 1], "LAYER_SCALE": None}})
    config.freeze()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [5e-4], "noise_range_t": None},
        "max_accuracy": np.float64(83.5),
        "epoch": np.int64(299),
        "config": config,
    }
    torch.save(checkpoint, tmp_path / "released.pth")
    loaded = load_file(tmp_path / "released.pth")
    assert loaded["config"]["MODEL"]["DEPTHS"] == [1, 1, 2, 1] and not isinstance(loaded["config"], CfgNode)
    assert loaded["max_accuracy"] == 83.5 and loaded["epoch"] == 299
    assert same(read_state_dict(tmp_path / "released.pth"), model.state_dict())


def test_averaged_weights_are_read_only_on_request(tmp_path):
    plain, average = small(seed=1).state_dict(), small(seed=2).state_dict()
    torch.save({"model": plain, "model_ema": average}, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), plain)
    assert same(read_state_dict(tmp_path / "x.pth", ema=True), average)
    torch.save({"model": plain}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: no averaged weights: expected.*found model"):
        read_state_dict(tmp_path / "x.pth", ema=True)


def test_safetensors_files_and_folders_of_shards_are_read(tmp_path):
    state = small().state_dict()
    save_file(to_hugging_face(state), tmp_path / "model.safetensors")
    assert same(read_state_dict(tmp_path / "model.safetensors"), state)
    keys = list(state)
    (tmp_path / "shards").mkdir()
    for i, part in enumerate((keys[:40], keys[40:])):
        save_file(to_hugging_face({key: state[key] for key in part}), tmp_path / f"shards/model-{i}.safetensors")
    read = read_state_dict(tmp_path / "shards")
    assert same(read, state)


class RunsCode:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"<html>404</html>", "not a readable checkpoint"),
        ("half", "not a readable checkpoint.*truncated.*download or save it again"),
        ({"epoch": 1, "loss": 0.5}, "no weights found: expected a state dict, or one under model.*found epoch, loss"),
        ([torch.ones(1)], "no weights found.*found list"),
        ({}, "no weights found.*found nothing"),
        (RunsCode(), r"Python objects that are not loaded for safety \(print\); save only its weights"),
    ],
    ids=["empty", "web page", "truncated", "no weights", "list", "empty dict", "code"],
)
def test_a_file_that_is_no_checkpoint_is_one_line_with_its_path(content, message, tmp_path, capfd):
    path = tmp_path / "x.pth"
    torch.save(small().state_dict() if isinstance(content, str | bytes) else content, path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=message) as error:
        read_state_dict(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_or_damaged_file_is_one_line_whatever_its_kind(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(CheckpointError, match="no checkpoint at .*; give the path"):
        load_file(path)
    path.write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_file(path)


def test_load_exact_names_what_is_missing_unexpected_and_of_another_shape():
    state = to_current(small().state_dict())
    state["extra.weight"] = state.pop("patch_embed.conv1.weight")
    with pytest.raises(CheckpointError) as error:
        load_exact(small(num_classes=7), state)
    message = str(error.value)
    assert "1 missing: patch_embed.conv1.weight" in message and "1 unexpected: extra.weight" in message
    assert "2 of another shape: head.weight is (10, 96), not (7, 96)" in message
    assert "\n" not in message


def test_the_error_of_a_wrong_model_stays_short():
    with pytest.raises(CheckpointError) as error:
        load_exact(small(), small(channels=16, layer_scale=1.0).state_dict())
    assert ", ...; " in str(error.value) and len(str(error.value)) < 600


def test_a_failed_load_changes_nothing():
    model, before = small(seed=1), {k: v.clone() for k, v in small(seed=1).state_dict().items()}
    with pytest.raises(CheckpointError):
        load_exact(model, {"patch_embed.conv1.bias": torch.zeros(4)})
    assert same(model.state_dict(), before)


def test_batch_counters_may_be_missing_and_wrapped_models_take_bare_weights():
    state = small(seed=1).state_dict()
    model = small(seed=2)
    without = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    load_exact(nn.DataParallel(model), without)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in without.items())


def test_a_model_on_the_meta_device_receives_the_weights():
    state = small().state_dict()
    with torch.device("meta"):
        model = InternImage(**SMALL, num_classes=10)
    load_exact(model, state)
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("layout", ["hugging face", "mm backbone", "data parallel", "deepspeed", "mm with averaging"])
def test_plain_load_state_dict_accepts_other_layouts(layout):
    state = small(seed=1, layer_scale=1.0).state_dict()
    model = small(seed=2, layer_scale=1.0)
    model.load_state_dict(LAYOUTS[layout](dict(state)))
    assert same(model.state_dict(), state)


def test_the_hook_converts_inside_a_detector_and_leaves_its_other_parts_alone():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = small(seed=2, layer_scale=1.0), nn.Linear(2, 2)

    source = small(seed=1, layer_scale=1.0).state_dict()
    state = {f"backbone.{key}": value for key, value in to_hugging_face(source).items()}
    state |= {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
    detector = Detector()
    detector.load_state_dict(state)
    assert same(detector.backbone.state_dict(), source) and detector.head.bias.tolist() == [1, 1]


def test_full_size_offsets_and_masks_lose_their_centre_rows():
    state = small(seed=1).state_dict()
    model = small(seed=2, remove_center=True)
    load_exact(model, state)
    name, groups = "levels.2.blocks.1.dcn", 2
    for key, numbers in ((f"{name}.offset.weight", 2), (f"{name}.mask.bias", 1)):
        full = state[key].reshape(groups, 9, numbers, -1)
        kept = model.state_dict()[key].reshape(groups, 8, numbers, -1)
        assert torch.equal(kept, full[:, [0, 1, 2, 3, 5, 6, 7, 8]])
    plain = small(seed=3, remove_center=True)
    plain.load_state_dict(state)
    assert same(plain.state_dict(), model.state_dict())
    load_exact(model, plain.state_dict())


def test_weights_without_centres_do_not_fit_a_model_with_them():
    with pytest.raises(CheckpointError, match="of another shape"):
        load_exact(small(), small(remove_center=True).state_dict())


@pytest.mark.parametrize("layout", [dict, detector_layout])
def test_a_backbone_takes_the_backbone_of_a_classifier_or_detector(layout):
    state = small(seed=1).state_dict()
    backbone = small(seed=2, features_only=True)
    assert load_pretrained(backbone, layout(state)) == []
    own = backbone.state_dict()
    assert own and all(torch.equal(own[key], state[key]) for key in own)


def test_layer_scales_that_the_file_lacks_keep_their_initial_value():
    model = InternImage(**SMALL, layer_scale=1.0, features_only=True)
    notices = load_pretrained(model, small().state_dict())
    assert len(notices) == 1 and "layer scales" in notices[0]
    assert all((block.gamma1 == 1).all() for level in model.levels for block in level.blocks)


def test_layer_scales_that_the_model_lacks_are_an_error():
    with pytest.raises(CheckpointError, match="10 unexpected: levels.0.blocks.0.gamma1"):
        load_pretrained(small(), small(layer_scale=1.0).state_dict())


def test_a_head_of_another_class_count_stays_as_initialised():
    state = small(num_classes=10, seed=1).state_dict()
    model = small(num_classes=5, seed=2)
    head = model.head.weight.detach().clone()
    (notice,) = load_pretrained(model, state)
    assert "10 classes, the model 5" in notice
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.conv_head[0].weight, state["conv_head.0.weight"])


def test_a_22k_head_gives_a_1k_model_the_rows_of_the_same_classes():
    state = small(num_classes=21841, seed=1).state_dict()
    model = small(num_classes=1000, seed=2)
    (notice,) = load_pretrained(model, state)
    assert "1000" in notice and "21841" in notice
    assert torch.equal(model.head.weight, state["head.weight"][in22k_to_1k()])
    assert torch.equal(model.head.bias, state["head.bias"][in22k_to_1k()])


@pytest.mark.parametrize("num_classes", [1000, 5, 21841])
def test_a_random_fine_tuning_head_is_the_models_own_times_one_thousandth(num_classes):
    model = small(num_classes=num_classes, seed=2)
    head = model.head.weight.detach().clone()
    notices = load_pretrained(model, small(num_classes=21841, seed=1).state_dict(), rand_init_head=True)
    assert len(notices) == 1
    assert torch.equal(model.head.weight, head * 0.001)


def test_an_image_classifier_initialises_the_model_with_metadata():
    state = small(num_classes=21841, seed=1).state_dict()
    model = InternImageMetaFormer(**SMALL, num_classes=20)
    notices = load_pretrained(model, state)
    assert len(notices) == 2 and "metadata" in notices[1]
    assert torch.equal(model.patch_embed.conv1.weight, state["patch_embed.conv1.weight"])


def test_a_metadata_model_initialises_one_with_other_classes():
    state = InternImageMetaFormer(**SMALL, num_classes=20).state_dict()
    model = InternImageMetaFormer(**SMALL, num_classes=7)
    assert len(load_pretrained(model, state)) == 1
    assert torch.equal(model.meta_norm.weight, state["meta_norm.weight"])


@pytest.mark.parametrize(
    "model", [{"channels": 16}, {"depths": (1, 1, 3, 1)}, {"cls_scale": 2.0}, {"in_chans": 4}], ids=str
)
def test_initialising_from_another_architecture_is_an_error(model):
    with pytest.raises(CheckpointError, match="does not fit InternImage"):
        load_pretrained(small(**model), small(num_classes=5).state_dict())


def test_a_grey_model_starts_from_the_sum_over_the_colours():
    state = small(num_classes=5, seed=1).state_dict()
    model = small(num_classes=5, in_chans=1)
    assert load_pretrained(model, state) == ["the first convolution is summed over the colours, for grey images"]
    assert torch.equal(model.patch_embed.conv1.weight, state["patch_embed.conv1.weight"].sum(1, keepdim=True))


def test_a_backbone_file_does_not_silently_leave_a_classifier_without_head():
    state = small(features_only=True).state_dict()
    with pytest.raises(CheckpointError, match="missing: conv_head.0.weight"):
        load_pretrained(small(), state)


def test_an_atomic_save_is_readable_and_leaves_no_other_file(tmp_path):
    state = small().state_dict()
    for _ in range(2):
        save_atomic({"model": state}, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_save_that_fails_keeps_the_old_file(tmp_path):
    save_atomic({"a": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"a": lambda: 0}, tmp_path / "x.pth")
    assert load_file(tmp_path / "x.pth")["a"].item() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


class DiesWhenSaved:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_save_that_is_killed_keeps_the_old_file(tmp_path):
    save_atomic({"a": torch.ones(1)}, tmp_path / "x.pth")
    child = os.fork()
    if child == 0:
        save_atomic([torch.zeros(9), DiesWhenSaved()], tmp_path / "x.pth")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert load_file(tmp_path / "x.pth")["a"].item() == 1
