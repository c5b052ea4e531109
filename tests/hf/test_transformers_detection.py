"""examples/rt_detr.py, and what docs/transformers.md says on detectors and segmentors, with few steps."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from released_folder import SMALL
from torch import nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
pytest.importorskip("pycocotools", reason="the composites need pip install -e '.[mm]'")

from transformers import RTDetrForObjectDetection

from demo.compose import CLASSES, compose
from internimage import InternImage

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "transformers.md").read_text()
FREEZE, PREDICT, *MASK2FORMER, DINO = re.findall(
    r"<!-- run by: tests/hf/test_transformers_detection\.py -->\n *```python\n(.*?)```", PAGE, re.S
)
COMMAND = re.search(r"^python examples/rt_detr\.py (--data data/composites (?:.*\\\n)*.*)$", PAGE, re.M)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds data/composites."""
    folder = tmp_path_factory.mktemp("detection")
    compose(folder / "data" / "composites", train=4, val=2)
    return folder


@pytest.fixture
def script(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / "examples")
    import rt_detr

    return rt_detr


def test_the_detector_starts_from_the_pretrained_backbone_and_is_saved_whole(script, small, released, tmp_path):
    detector = script.build(str(released), True, list(CLASSES))
    backbone = detector.model.backbone.model.model.state_dict()
    assert len(backbone) > 50 and all(value.equal(small.state_dict()[key]) for key, value in backbone.items())
    detector.save_pretrained(tmp_path)
    again, loading = RTDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert all(value.equal(detector.state_dict()[key]) for key, value in again.state_dict().items())
    assert again.config.id2label == dict(enumerate(CLASSES))


def test_blocks_keep_their_own_learning_rates_under_a_scheduler(script, released):
    detector = script.build(str(released), True, list(CLASSES))
    groups = script.parameter_groups(detector, 1e-3, 0.01, layer_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates.keys() == set(detector.parameters())
    backbone = detector.model.backbone.model.model
    assert rates[backbone.patch_embed.conv1.weight] == pytest.approx(1e-4 * 0.5 ** (sum(SMALL["depths"]) - 1))
    assert rates[detector.model.enc_score_head.weight] == pytest.approx(1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_the_truth_as_prediction_has_an_average_precision_of_one_unless_mirrored(script, flip, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.0)
    processor = script.RTDetrImageProcessor(size={"height": 64, "width": 96})
    data = script.CocoFolder("data/composites", "val", processor, flip)
    batch = script.collate([data[index] for index in range(len(data))])
    assert batch["pixel_values"].shape == (2, 3, 64, 96)
    logits, boxes = np.full((2, 6, len(CLASSES)), -9.0, np.float32), np.full((2, 6, 4), 0.5, np.float32)
    for image, labels in enumerate(batch["labels"]):
        count = len(labels["boxes"])
        boxes[image, :count] = labels["boxes"]
        logits[image, np.arange(count), labels["class_labels"]] = 9.0
    evaluation = SimpleNamespace(predictions=[(logits, boxes)], label_ids=[batch["labels"]])
    result = script.average_precision(data, evaluation)["AP"]
    assert result < 0.9 if flip else result == pytest.approx(1.0)


def test_a_folder_without_annotations_is_named(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--data", "data", "--output_dir", "output"])
    assert "data has no annotations/train.json" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_trains_and_evaluates_and_the_page_predicts_and_exports(script, released, capsys):
    arguments = shlex.split(COMMAND.replace("\\\n", " "))
    arguments += ["--backbone", str(released), "--num_train_epochs", "1", "--per_device_train_batch_size", "2"]
    script.main([*arguments, "--report_to", "none", "--use_cpu"])
    history = json.loads(Path("output/rt_detr/checkpoint-2/trainer_state.json").read_text())["log_history"]
    assert 0 <= history[-1]["eval_AP"] <= history[-1]["eval_AP50"] <= 1
    # Hardly trained, BatchNorm's factors are near 0, all queries alike, and rounding decides their order.
    detector = RTDetrForObjectDetection.from_pretrained("output/rt_detr").train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.momentum = 1.0  # the statistics are those of the next batch
    processor = script.RTDetrImageProcessor.from_pretrained("output/rt_detr")
    data = script.CocoFolder("data/composites", "val", processor, flip=False)
    with torch.inference_mode():
        detector(script.collate([data[0], data[1]])["pixel_values"])
    detector.save_pretrained("output/rt_detr")
    Path("photo.jpg").symlink_to(next(Path("data/composites/images/val").iterdir()))
    scope: dict = {}
    capsys.readouterr()
    exec(
        PREDICT.replace("threshold=0.5", "threshold=0.1").replace("(folder).eval", "(folder, decoder_layers=1).eval"),
        scope,
    )
    assert any(name in capsys.readouterr().out for name in CLASSES)
    assert Path("rt_detr.onnx").stat().st_size > 1e6


def test_mask2former_trains_and_is_evaluated_as_the_page_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    code = "\n".join(MASK2FORMER).replace("num_train_epochs=2", "num_train_epochs=5, use_cpu=True, report_to='none'")
    scope: dict = {}
    exec(code.replace("warmup_steps=100", "warmup_steps=0"), scope)
    losses = [entry["eval_loss"] for entry in scope["trainer"].state.log_history if "eval_mIoU" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.5  # measured: 29.6 to 28.1
    again = type(scope["segmentor"]).from_pretrained("segmentor")
    stem = again.model.pixel_level_module.encoder.model.patch_embed.conv1.weight
    assert stem.equal(scope["backbone"].model.patch_embed.conv1.weight)
    batch = scope["collate"]([scope["Pictures"]("val")[index] for index in range(2)])
    maps = [np.array(labels) for _, labels in (scope["Pictures"]("val")[index] for index in range(2))]
    labels = ([mask.numpy() for mask in batch["mask_labels"]], [label.numpy() for label in batch["class_labels"]])
    truth = SimpleNamespace(predictions=[maps], label_ids=[labels])
    assert scope["mean_iou"](truth) == {"mIoU": 1.0, "accuracy": 1.0}


def test_the_backbone_of_a_released_detector_carries_over_and_is_frozen_in_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = InternImage(**{**SMALL, "post_norm": False}, features_only=True).state_dict()
    state = {f"backbone.{key}": value for key, value in source.items()} | {
        "encoder.layers.0.norms.0.weight": torch.ones(4)
    }
    torch.save({"meta": {}, "state_dict": state}, "dino_4scale_internimage_t_1x_coco.pth")
    sizes = ", ".join(f"{key}={SMALL[key]}" for key in ("channels", "depths", "groups"))
    scope: dict = {}
    exec(DINO.replace("layer_scale=1.0", f"layer_scale=1.0, {sizes}") + re.sub(r"^  ", "", FREEZE, flags=re.M), scope)
    backbone = scope["backbone"].model
    assert all(value.equal(source[key]) for key, value in backbone.state_dict().items())
    learned = {name.split(".")[1] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert learned == {"1", "2", "3"}
