"""`tools/zoo.py`: the tables of README and docs, and their measured columns."""

import re
from pathlib import Path

import pytest
import torch

from internimage.errors import UserError
from internimage.flops import count_flops, count_parameters
from internimage.variants import VARIANTS
from internimage.zoo import releases
from ops_dcnv3 import DCNv3
from tools import zoo

NAME = "internimage_t_1k_224"


def test_the_tables_in_readme_and_docs_are_current():
    for page in (zoo.ROOT / name for name in zoo.PAGES):
        if page.is_file():
            text = page.read_text()
            assert "<!-- zoo: " in text and zoo.fill(text, page.parent) == text, f"{page.name}: run python tools/zoo.py"


def test_text_around_the_tables_stays_and_stale_tables_are_replaced():
    text = "before\n<!-- zoo: detection short -->\nstale\n<!-- zoo: end -->\nafter\n<!-- zoo: other -->\n"
    filled = zoo.fill(text, zoo.ROOT)
    assert filled.startswith("before\n") and filled.endswith("\nafter\n<!-- zoo: other -->\n")
    assert "stale" not in filled and zoo.short_table("detection", zoo.ROOT) in filled


@pytest.mark.parametrize("task", zoo.SHORT)
def test_the_full_tables_have_a_line_per_release(task):
    text = zoo.full_tables(task, zoo.ROOT / "docs")
    rows = [line for line in text.splitlines() if line.startswith("| ") and ":---:" not in line]
    of_task = [release for release in releases() if release.task == task]
    assert len(rows) == len(of_task) + len({release.section for release in of_task})  # and one header per section
    for table in re.split(r"\n\n(?=###)", text):
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_only_the_22k_models_have_no_configuration():
    without = {release.name for release in releases() if not release.config}
    assert without == {name for name in VARIANTS if VARIANTS[name]["num_classes"] == 21841}


def test_a_row_that_names_a_configuration_which_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", Path("/nowhere"))
    with pytest.raises(UserError, match="names segmentation/configs/.* which does not exist"):
        zoo.full_tables("segmentation", Path("/nowhere"))


def test_every_figure_of_the_front_page_is_the_published_one_of_its_configuration_or_has_none():
    page = (zoo.ROOT / "docs" / "model_zoo.md").read_text().partition("\n## Classification")[0]
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| ([\d.]+) \| [^|]* \| (no recipe published|\[config]\((.*)\)) \|$", page, re.M
    )
    assert len(rows) == 18 and sum(not path for *_, path in rows) == 6
    for data_set, figure, _, path in rows:
        if path:
            name = path.removeprefix("../").replace("cocostuff2ade20k_ms", "cocostuff2ade20k_ss")
            release = next(release for release in releases() if name in release.config.split())
            published = re.findall(r"\d+\.\d+", " ".join(release.facts.values()))
            assert figure in {f"{float(value):.1f}" for value in published}, data_set


def test_models_with_extra_training_data_are_marked():
    row = next(line for line in zoo.full_tables("segmentation", zoo.ROOT).splitlines() if "85.94" in line)
    assert row.startswith(r"| UperNet\* |") and zoo.NOTES["Cityscapes"].startswith(r"\* uses extra data")


def test_the_classification_table_shows_measured_beside_published():
    text = zoo.full_tables("classification", zoo.ROOT)
    row = next(line for line in text.splitlines() if "| InternImage-H | Joint" in line and "1478G" in line)
    assert all(f"| {figure} |" in row for figure in ("1.08B", "1478G", "1089.6M", "1493G"))


def test_parameters_and_flops_are_the_published_ones(capsys):
    assert zoo.check_classifiers([NAME])
    assert "all agree" in capsys.readouterr().out


def test_every_variant_has_measured_figures():
    assert set(zoo.MEASURED) == set(VARIANTS)


def test_a_model_that_grew_fails_the_check(monkeypatch, capsys):
    parameters, flops = zoo.MEASURED[NAME]
    monkeypatch.setattr(zoo, "measure", lambda name: (parameters + 10**5, flops * 2))
    assert not zoo.check_classifiers([NAME])
    output = capsys.readouterr().out
    for difference in ("published are 29.9 M parameters", "published are 5 GFLOPs", "some differ"):
        assert difference in output


def test_flops_follow_the_convention_on_one_layer():
    layer = DCNv3(8, group=2, backend="torch")
    pixels, depthwise, linear = 6 * 7, 8 * 9, 8 * (2 * 9 * 3) + 2 * 8 * 8
    expected = pixels * (depthwise + linear) + 5 * pixels * 9 * 8
    assert count_flops(layer, torch.zeros(1, 6, 7, 8)) == expected
    assert count_parameters(layer) == sum(p.numel() for p in layer.parameters())
    assert layer.training and not layer._forward_hooks
