"""What users do with the transformers classes: predict, train, convert, publish."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")

import transformers.utils.hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

import internimage
from classification.config import get_config, parse_args
from classification.data.transforms import build_transform
from internimage import hf
from internimage.hf import convert
from internimage.imagenet import class_names

CONFIG = Path(__file__).parents[2] / "classification/configs/internimage_t_1k_224.yaml"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(123, 64), (64, 64), (97, 151), (41, 30), (67, 64)])
def test_the_image_processor_is_the_evaluation_transform_of_classification(size):
    config = get_config(parse_args(["--cfg", str(CONFIG), "--opts", "DATA.IMG_SIZE", "64"]))
    processor = hf.InternImageImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    pixels = processor(picture(*size), return_tensors="pt")["pixel_values"]
    expected = build_transform(config, train=False)(picture(*size))[None]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)  # a step of 8 bits is 0.017


@pytest.fixture
def ours(released, tmp_path):
    """`released`, saved by our classes, with our image processor."""
    hf.InternImageForImageClassification.from_pretrained(released).save_pretrained(tmp_path / "ours")
    hf.InternImageImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def test_a_pipeline_classifies_from_a_released_folder_and_from_our_own(small, released, ours):
    found = []
    for folder in (released, ours):
        classify = pipeline("image-classification", model=str(folder), trust_remote_code=False)
        assert classify.image_processor.crop_size["height"] == 64
        found.append(classify(picture(80, 64), top_k=2))
    assert type(classify.image_processor) is hf.InternImageImageProcessor
    assert type(AutoImageProcessor.from_pretrained(ours)) is hf.InternImageImageProcessor
    pixels = classify.image_processor(picture(80, 64), return_tensors="pt")["pixel_values"]
    score, label = small(pixels).softmax(1).max(1)
    assert found[1][0] == {"label": class_names(1000)[label], "score": pytest.approx(score.item(), rel=1e-5)}
    assert found[0][0]["label"] == found[1][0]["label"]  # CLIP's processor resizes with torchvision


def test_trainer_fine_tunes_saves_and_goes_on(released, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(
        released, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, ignore_mismatched_sizes=True
    )
    before = model.model.levels[0].blocks[0].dcn.offset.weight.clone()
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 2} for index in range(4)]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=2, save_steps=1, report_to="none", use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(model.model.levels[0].blocks[0].dcn.offset.weight, before)
    trainer.save_model(tmp_path / "tuned")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")
    assert again.config.id2label == {0: "cat", 1: "dog"}
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    assert trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")).global_step == 2


def test_checkpoints_become_folders_and_folders_checkpoints(small, released, tmp_path, capsys):
    model = AutoModelForImageClassification.from_pretrained(
        released, id2label={0: "cat", 1: "dog"}, ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "tuned")
    hf.InternImageImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(tmp_path / "tuned")
    convert.main([str(tmp_path / "tuned"), str(tmp_path / "tuned.pth")])
    predictor = internimage.load(tmp_path / "tuned.pth")
    assert predictor.class_names == ["cat", "dog"] and predictor.classifier.config.DATA.IMG_SIZE == 64
    convert.main([str(tmp_path / "tuned.pth"), str(tmp_path / "again")])
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    scores = {
        found["label"]: found["score"]
        for found in pipeline("image-classification", tmp_path / "again", trust_remote_code=False)(picture(90, 70))
    }
    result = predictor.predict(picture(90, 70))[0]
    assert scores == pytest.approx(dict(zip(result.names, result.scores.tolist())), rel=1e-5)
    direct = internimage.load(tmp_path / "tuned").predict(picture(90, 70))[0]
    assert direct.names == result.names and np.array_equal(direct.scores, result.scores)
    assert "wrote" in capsys.readouterr().out


def test_what_cannot_be_converted_says_so(released, tmp_path, capsys):
    def error(*argv: object) -> str:
        with pytest.raises(SystemExit) as caught:
            convert.main([str(word) for word in argv])
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "has no config.json; convert a checkpoint" in error(tmp_path, tmp_path / "x.pth")
    assert "no model, file or folder 'internimage_q'" in error("internimage_q", tmp_path / "folder")
    hf.InternImageModel.from_pretrained(released).save_pretrained(tmp_path / "features")
    assert "is not a classifier: 2 entries are missing (model.head.bias" in error(
        tmp_path / "features", tmp_path / "x.pth"
    )
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    assert "does not say how to build its model" in error(tmp_path / "x.pth", tmp_path / "folder")
    assert "features is for transformers; first run python -m internimage.hf.convert" in error(
        tmp_path / "features", tmp_path / "folder"
    )
    assert not (tmp_path / "folder").exists()


class FakeHub:
    """Stands in for the Hub's client: keeps what is uploaded, and the card that the repository has."""

    def __init__(self, card: str | None = None) -> None:
        self.card, self.files = card, {}

    def create_repo(self, repo_id: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, **_: object) -> None:
        pass

    def create_commit(self, operations: list, **_: object) -> str:
        self.files |= {step.path_in_repo: Path(step.path_or_fileobj).read_bytes() for step in operations}
        return "commit"


@pytest.mark.parametrize("own_card", [False, True])
def test_pushing_uploads_the_folder_with_a_card_unless_the_repository_has_one(released, monkeypatch, own_card):
    def load(repo_id: str, **_: object) -> ModelCard:
        if own_card:
            return ModelCard("---\nlicense: mit\n---\nWritten by hand.")
        raise EntryNotFoundError("no card")

    hub = FakeHub()
    monkeypatch.setattr(transformers.utils.hub, "hf_api", lambda: hub)
    monkeypatch.setattr(transformers.utils.hub.ModelCard, "load", load)
    hf.InternImageForImageClassification.from_pretrained(released).push_to_hub("me/internimage_s_1k_224")
    assert hub.files.keys() == {"README.md", "config.json", "model.safetensors", "modeling_internimage.py"}
    card = hub.files["README.md"].decode()
    if own_card:
        assert "Written by hand." in card
    else:
        data = ModelCard(card).data
        assert (data.license, data.base_model) == ("mit", "OpenGVLab/internimage_s_1k_224")
        assert data.pipeline_tag == "image-classification" and data.library_name == "transformers"
        assert (
            "acc@1 84.2" in card
            and "evaluate them on your data" in card
            and "@inproceedings{wang2023internimage" in card
        )
