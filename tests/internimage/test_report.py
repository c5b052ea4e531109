"""Reports: their numbers are right, they stay readable with any number of classes, and no error in them ends a run."""

import csv

import numpy as np
import pytest
from PIL import Image

from internimage import report
from internimage.results import cjk_font

UNIT = np.array([1.0])


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(folder, rows, names, **options):
    lines, shown = [], []
    image = Image.new("RGB", (8, 6))
    tiles = [(image, "90% cat\nis dog", False), (image, "80% cat", True), (image, "truth", None)]
    arguments = "validation", "images", names, np.array(rows, float), tiles, 2
    parts = report.evaluation(*arguments, **options)
    report.write_report(folder, lambda: parts, lines.append, lambda name, pixels: shown.append((name, pixels.shape)))
    return lines, shown


def test_the_tables_count_what_the_rows_say(tmp_path):
    rows = [(0, 0, 0.9, 6), (0, 1, 0.8, 2), (1, 1, 0.7, 3), (1, 3, 0.6, 1), (3, 1, 0.5, 1)]  # 3: none of the classes
    lines, shown = write(tmp_path / "new", rows, ["cat", "dog", "cow"])
    assert lines == [f"tables and pictures are in {tmp_path / 'new'}"]
    drawn = ("classes", "confusion_matrix", "precision_recall", "predictions")
    assert [name for name, _ in shown] == [f"new/{name}" for name in drawn]
    cat, dog, cow = read(tmp_path / "new/classes.csv")
    assert cat == {
        "class": "cat",
        "images": "8",
        "top-1 accuracy (%)": "75",
        "precision (%)": "100",
        "recall (%)": "75",
    }
    assert (dog["images"], dog["precision (%)"], dog["recall (%)"]) == ("4", "50", "75")
    assert (cow["images"], cow["precision (%)"], cow["recall (%)"]) == ("0", "", "")
    pairs = [tuple(row.values()) for row in read(tmp_path / "new/confusion_matrix.csv")]
    assert pairs[0] == ("cat", "cat", "6") and ("dog", "none", "1") in pairs and ("none", "dog", "1") in pairs


def test_precision_falls_as_recall_rises_and_equal_scores_count_together(tmp_path):
    # By score: right; wrong; right and wrong together. Two of three truths are found.
    rows = [(0, 0, 0.9, 1), (1, 0, 0.8, 1), (0, 0, 0.7, 1), (1, 0, 0.7, 1), (0, 1, 0.6, 1)]
    write(tmp_path, rows, ["a", "b"])
    levels = read(tmp_path / "precision_recall.csv")
    assert [float(levels[at]["a"]) for at in (0, 33, 34, 66, 67)] == [100, 100, 50, 50, 0]
    assert [row["b"] for row in levels] == ["0"] * 101  # predicted once, wrong


def test_the_intersection_over_union_of_pixels_is_the_score_of_their_classes(tmp_path):
    rows = np.array([(0, 0, 1, 6), (0, 1, 1, 2), (1, 1, 1, 4)], float)
    parts = report.evaluation("test", "pixels", ["a", "b"], rows, [], 1)
    report.write_report(tmp_path, lambda: parts, print)
    assert [float(row["IoU (%)"]) for row in read(tmp_path / "classes.csv")] == [75, pytest.approx(400 / 6, rel=1e-5)]
    assert not (tmp_path / "predictions.png").exists()


def test_pictures_of_a_thousand_classes_stay_small_and_tables_are_whole(tmp_path):
    labels = np.arange(1000)
    names = [f"_$x$ {label}" for label in labels]  # neither mathematics nor left out of legends
    rows = np.concatenate([np.stack([labels, other, UNIT.repeat(1000) * score, UNIT.repeat(1000)], 1)
                           for other, score in ((labels, 0.9), ((labels + 1) % 1000, 0.5))])  # fmt: skip
    (line,), shown = write(tmp_path, rows, names)
    assert "incomplete" not in line and all(max(shape) < 1600 for _, shape in shown)
    assert len(read(tmp_path / "classes.csv")) == 1000 and len(read(tmp_path / "confusion_matrix.csv")) == 2000


def test_curves_have_a_row_for_each_record_and_gaps_where_nothing_was_measured(tmp_path):
    records = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": float("nan"), "top1": 50.0}]
    name, figure, rows = report.curves(records, "epoch", {"loss": {"loss": "training"}, "accuracy": {"top1": "top-1"}})
    loss, accuracy = figure.axes
    assert accuracy.lines[0].get_xydata().tolist() == [[2, 50]] and len(loss.lines[0].get_xydata()) == 2
    report.write_report(tmp_path, lambda: [(name, figure, rows)], print)
    assert read(tmp_path / "curves.csv")[0] == {"epoch": "1", "loss": "2", "top1": ""}
    report.curves([], "epoch", {"loss": {"loss": "training"}, "accuracy": {}})  # neither lines nor a legend


def test_letters_that_no_font_has_are_one_line_which_names_a_package(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "cjk_font", lambda: None)
    lines, _ = write(tmp_path, [(0, 0, 0.9, 6), (1, 0, 0.8, 2)], ["狗", "猫"])
    assert [line for line in lines if "apt install fonts-noto-cjk" in line] == lines[:1]
    if font := cjk_font():
        monkeypatch.setattr(report, "cjk_font", lambda: font)
        assert "no installed font" not in write(tmp_path, [(0, 0, 0.9, 6)], ["狗", "cat"])[0][0]


def test_an_error_while_drawing_or_writing_is_a_line_and_not_the_end(tmp_path):
    def fail():
        raise MemoryError("no room")

    lines = []
    report.write_report(tmp_path, fail, lines.append)
    (tmp_path / "file").write_text("")
    report.write_report(tmp_path / "file", lambda: (), lines.append)
    assert "is incomplete (MemoryError: no room)" in lines[0] and "is incomplete (FileExistsError" in lines[1]
