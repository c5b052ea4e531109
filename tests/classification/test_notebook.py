"""docs/quickstart.ipynb runs from top to bottom, and is committed without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = json.loads((Path(__file__).parents[2] / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))


def test_every_code_cell_follows_its_explanation_and_has_no_outputs():
    kinds = [cell["cell_type"] for cell in NOTEBOOK["cells"]]
    assert kinds == ["markdown"] + ["markdown", "code"] * (len(kinds) // 2)
    codes = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(kinds)


@pytest.mark.slow
def test_the_notebook_runs_and_the_trained_model_reads_digits_in_onnx_runtime_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["accuracy"] > 0.9
    assert [level.shape[-1] for level in names["maps"]] == [8, 4, 2, 1]
    assert len(names["pictures"]) == 5
    assert names["difference"] < 1e-4
