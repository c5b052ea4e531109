"""Detectors and segmentors by their checkpoint or their name alone, and nothing in a checkpoint is executed."""

import json
from copy import deepcopy
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import tiny_coco
import tiny_scenes
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from quickstart import quick_start

import internimage
from internimage.__main__ import main
from internimage.errors import CheckpointError
from internimage.images import read_image
from internimage.mm import runner
from internimage.mm.checks import read_config
from internimage.mm.plain_config import KEY, from_plain, to_plain
from internimage.mm.predictor import load_model, resolve_model

TASKS = {
    "detection": (tiny_coco, "mmdet", "images/0.png", ["red", "green"]),
    "segmentation": (tiny_scenes, "mmseg", "images/val/0.png", ["ground", "red", "green"]),
}


def write_model(folder, name):
    """A checkpoint of a tiny model with random weights, as a training with another test scale writes it."""
    tiny, scope, image, names = TASKS[name]
    data = tiny.make_data(folder / "data")
    config = read_config(str(tiny.make_config(folder, data)), {"test_dataloader.dataset.pipeline.1.scale": (72, 48)})
    init_default_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(deepcopy(config.model))
    meta = {KEY: to_plain(config), "dataset_meta": DATASETS.build(config.test_dataloader.dataset).metainfo}
    (folder / "run").mkdir()
    torch.save({"state_dict": model.state_dict(), "meta": meta}, folder / "run" / "epoch_1.pth")
    return SimpleNamespace(run=folder / "run", image=data / image, names=names, name=name, config=config, folder=folder)


@pytest.fixture(scope="module")
def detection(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("detection"), "detection")


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("segmentation"), "segmentation")


@pytest.fixture(params=list(TASKS))
def case(request):
    return request.getfixturevalue(request.param)


def test_the_quick_start_runs_on_the_folder_of_a_training(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(quick_start(case.name.capitalize(), case.run, case.image), {})
    assert len(list(tmp_path.glob("*.jpg"))) == 1
    assert "[" in capsys.readouterr().out or case.name == "segmentation"


def test_a_detector_finds_what_mmdets_own_inference_finds_with_the_settings_of_its_training(detection):
    model = internimage.load(detection.run, device="cpu")
    assert model.class_names == detection.names
    assert model.model.cfg.test_dataloader.dataset.pipeline[1].scale == (72, 48)
    (result,) = model.predict(detection.image, threshold=0.05)
    expected = inference_detector(model.model, mmcv.imread(str(detection.image))).pred_instances
    assert 0 < len(result.boxes) == len(expected)
    assert np.allclose(result.boxes, expected.bboxes, atol=1e-3) and np.allclose(result.scores, expected.scores)
    assert result.masks.shape == (len(expected), 64, 96) and result.masks.dtype == bool
    assert result.names == [detection.names[label] for label in result.labels]
    (none,) = model.predict(detection.image, threshold=1.0)
    assert none.boxes.shape == (0, 4) and none.summary() == "0 objects" and none.plot().size == (288, 192)


def test_a_segmentor_uses_the_test_pipeline_of_its_training_and_its_palette(segmentation):
    model = internimage.load(segmentation.run, device="cpu")
    assert model.model.cfg.test_pipeline[1].scale == (72, 48)
    first, second = model.predict([segmentation.image, np.asarray(read_image(segmentation.image))])
    assert np.array_equal(first.labels, second.labels) and first.labels.shape == (48, 72)
    assert first.names == segmentation.names
    assert [list(color) for color in first.palette] == tiny_scenes.PALETTE


def test_two_models_of_different_tasks_are_used_in_turn(detection, segmentation):
    models = [internimage.load(case.run, device="cpu") for case in (detection, segmentation)]
    for _ in range(2):
        kinds = [type(model.predict(detection.image)[0]).__name__ for model in models]
        assert kinds == ["DetectionResult", "SegmentationResult"]


def test_the_command_writes_pictures_and_json(case, tmp_path, capsys):
    main(["predict", str(case.image), "--checkpoint", str(case.run), "--output", str(tmp_path), "--device", "cpu"])
    (entry,) = json.loads((tmp_path / "predictions.json").read_text())
    assert {"detection": "objects", "segmentation": "classes"}[case.name] in entry
    assert (tmp_path / "0.jpg").is_file() and "1 results" in capsys.readouterr().out


def test_what_the_backbone_sees_is_drawn_over_the_input_that_it_gets(case, monkeypatch, capsys):
    monkeypatch.setattr("internimage.visualization.pictures.render", lambda figure: None)
    model = internimage.load(case.run, device="cpu")
    pictures = internimage.visualize(model, case.image)
    assert list(pictures) == ["sampling_points", "mask_weights", "feature_pca", "effective_receptive_field"]
    assert "no picture class_activation: it needs a classifier" in capsys.readouterr().out
    pixels = torch.rand(3, 4, 5)
    (normalized,) = model.model.data_preprocessor({"inputs": [pixels.flip(0) * 255]}, False)["inputs"]
    assert torch.allclose(model.to_rgb(normalized)[:4, :5], pixels.permute(1, 2, 0), atol=1e-5)


def test_one_tile_of_the_whole_image_predicts_what_the_image_predicts(case, tmp_path):
    model = internimage.load(case.run, device="cpu")
    (whole,) = model.predict(case.image, threshold=0.05)
    (tiled,) = model.predict(case.image, threshold=0.05, tile=96)
    assert len(model.predict(case.image, threshold=0.05, tile=32)) == 1
    assert np.array_equal(whole.labels, tiled.labels)
    if case.name == "detection":
        assert np.allclose(whole.boxes, tiled.boxes, atol=1e-3) and np.array_equal(whole.masks, tiled.masks)
    main(["predict", str(case.image), "--checkpoint", str(case.run), "--output", str(tmp_path), "--tile", "48"])


def test_the_commands_call_the_scripts_of_the_task(case, monkeypatch):
    calls = []
    for name in ("train", "test"):
        monkeypatch.setattr(runner, name, lambda task, argv, name=name: calls.append((name, task.name, argv)))
    for task in TASKS:
        monkeypatch.setattr(f"{task}.export.main", lambda argv, task=task: calls.append(("export", task, argv)))
    checkpoint, config = str(case.run / "epoch_1.pth"), str(case.config.filename)
    main(["train", "--config", config, "--output", "new", "--amp"])
    main(["evaluate", "--checkpoint", str(case.run), "--tta"])
    main(["evaluate", "--checkpoint", checkpoint, "--config", config])
    main(["export", "--checkpoint", checkpoint, "--output", "x.onnx"])
    assert calls == [
        ("train", case.name, [config, "--output", "new", "--amp"]),
        ("test", case.name, [checkpoint, "--tta"]),
        ("test", case.name, [config, checkpoint]),
        ("export", case.name, ["--output", "x.onnx", "--checkpoint", checkpoint]),
    ]


def test_a_released_detector_loads_a_local_file_with_the_names_of_coco(tmp_path, monkeypatch):
    name = "mask_rcnn_internimage_t_fpn_1x_coco"
    config = Config.fromfile(internimage.model_source.find_config(name).config)
    init_default_scope("mmdet")
    with torch.device("meta"):
        state = MODELS.build(config.model).state_dict()
    # A small file: every tensor is one zero, expanded.
    zeros = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    torch.save({"state_dict": zeros, "meta": {}}, tmp_path / f"{name}.pth")
    monkeypatch.setenv("INTERNIMAGE_HOME", str(tmp_path))
    model = internimage.load(name, device="cpu")
    assert model.class_names[0] == "person" and len(model.class_names) == len(model.palette) == 80


def test_a_configuration_that_differs_from_the_checkpoints_is_noted(detection, capsys):
    arguments = SimpleNamespace(
        config=str(detection.folder / "mask_rcnn.py"),
        weights=str(detection.run / "epoch_1.pth"),
        checkpoint=None,
        named_config=None,
    )
    resolve_model(SimpleNamespace(**vars(arguments), cfg_options={}))
    assert "was trained with another model or test pipeline" in capsys.readouterr().out
    same = {"test_dataloader.dataset.pipeline.1.scale": (72, 48)}
    resolve_model(SimpleNamespace(**vars(arguments), cfg_options=same))
    assert "note:" not in capsys.readouterr().out


# Checkpoints from strangers


def changed(config, place, value):
    """A configuration's plain data with one more or another value."""
    data = deepcopy(to_plain(config))
    *parents, last = place.split(".")
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return data


TOUCH = "__import__('pathlib').Path('executed').touch()"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("model.test_cfg.rcnn.nms.type", TOUCH, "is not in the registries"),  # mmcv evaluates it
        ("model.type", "os.system", "'os.system' is not in the registries"),
        ("model.backbone", {"type": "mmengine.load", "file": "x.pkl"}, "'mmengine.load' is not in the registries"),
        ("model.neck.type", print, "is not in the registries"),
        ("test_dataloader.sampler", {"type": "CameraMotionCompensation", "warp_mode": TOUCH}, "CameraMotion"),
        ("model.backbone._scope_", "os", "'os' is not a framework"),
        ("optim_wrapper.constructor", "os.system", "'os.system' is not in the registries"),
        ("default_scope", "os", "not one of mmdet or mmseg"),
        ("model", [1], "with model and test_dataloader"),
    ],
)
def test_nothing_in_a_checkpoint_is_executed(place, value, words, detection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        from_plain(changed(detection.config, place, value), "bad.pth")
    assert words in str(error.value) and "bad.pth" in str(error.value)
    assert "give the file of the configuration" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_imports_no_modules_but_ours(detection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "stranger.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    imports = {"imports": ["internimage.mm", "stranger"], "allow_failed_imports": False}
    config = from_plain(changed(detection.config, "custom_imports", imports), "bad.pth")
    assert not (tmp_path / "executed").exists()
    assert load_model(config, detection.run / "epoch_1.pth")


def test_text_in_an_older_checkpoint_is_not_executed(detection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(detection.run / "epoch_1.pth")
    meta = {"cfg": f"model = {TOUCH}", "config": f"model = {TOUCH}"}
    torch.save({"state_dict": content["state_dict"], "meta": meta}, "old.pth")
    with pytest.raises(CheckpointError, match="old.pth does not say how to build its model"):
        internimage.load("old.pth")
    assert not (tmp_path / "executed").exists()


def test_a_configuration_that_contains_itself_is_refused(detection):
    data = changed(detection.config, "model.neck.again", {})
    data["model"]["neck"]["again"] = data["model"]
    with pytest.raises(CheckpointError, match="more than 100000 values"):
        from_plain(data, "bad.pth")
