"""The Python blocks of docs/transformers.md run, in order, with a small model in place of the released one."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[hf]'")

from transformers import AutoModelForImageClassification

import internimage.hf  # noqa: F401 - registers the models

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


def test_the_page_runs_from_loading_to_the_fine_tuned_model(released, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("photo.jpg", "data/train/cat/0.png", "data/train/dog/1.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(name)
    blocks = re.findall(
        r"<!-- run by: tests/hf/test_transformers_docs\.py -->\n```python\n(.*?)```", PAGE.read_text(), re.S
    )
    assert len(blocks) == 3
    code = "\n".join(blocks).replace("OpenGVLab/internimage_t_1k_224", str(released))
    code = code.replace(
        "num_labels=5", "num_labels=5, num_queries=20, decoder_layers=1"
    )  # fewer than pixels of a small image's maps
    scope: dict = {}
    exec(compile(code.replace('"run", ', '"run", report_to="none", use_cpu=True, '), str(PAGE), "exec"), scope)
    assert "'label': " in capsys.readouterr().out
    backbone = scope["detector"].model.backbone.model
    assert backbone is scope["backbone"]
    boxes = {"class_labels": scope["torch"].tensor([1]), "boxes": scope["torch"].tensor([[0.5, 0.5, 0.2, 0.2]])}
    loss = scope["detector"].train()(scope["torch"].randn(1, 3, 96, 96), labels=[boxes]).loss
    loss.backward()
    assert loss.isfinite() and backbone.model.patch_embed.conv1.weight.grad.any()
    assert AutoModelForImageClassification.from_pretrained("tuned").config.id2label == {0: "cat", 1: "dog"}
