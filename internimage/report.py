"""What a run leaves behind: its curves and its last evaluation as pictures (PNG) and tables (CSV).

Tasks gather plain arrays; this module draws and writes them. Empty cells of a table are values that are not defined,
such as the precision of a class that was never predicted.
"""

import csv
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .figures import render
from .results import cjk_font

__all__ = ["Part", "Tile", "curves", "evaluation", "write_report"]

Part = tuple[str, Figure, Sequence[Sequence]]  # name of the files, picture, rows of the table
Tile = tuple[Image.Image, str, bool | None]  # picture, caption, whether it is right

# Okabe and Ito's colours, which the colour-blind tell apart too.
_BLUE, _VERMILLION, _SKY = "#0072B2", "#D55E00", "#56B4E9"
_COLORS = (_BLUE, "#E69F00", "#009E73", "#CC79A7", _SKY, _VERMILLION, "#F0E442", "#999999")
_RECALL = np.linspace(0, 1, 101)  # COCO's levels
_MOST_BARS, _MOST_CELLS = 40, 25  # classes that a picture has room for


def write_report(
    folder: Path,
    parts: Callable[[], Iterable[Part]],
    log: Callable[[str], None],
    show: Callable[[str, np.ndarray], None] = lambda name, pixels: None,
) -> None:
    """Write `NAME.png` and `NAME.csv` of every part. An error is logged, since it must not end a run.

    Args:
        folder: created if it is missing.
        parts: called once; makes them.
        log: takes a line of text.
        show: takes the name of a picture and its pixels `(H, W, 3)`, RGB uint8, for TensorBoard.
    """
    families = [*matplotlib.rcParams["font.family"]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if font := cjk_font():  # for letters that the others lack
            fontManager.addfont(font)
            families.append(FontProperties(fname=font).get_name())
        with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings(record=True) as found:
            for name, figure, rows in parts():
                picture = render(figure)
                picture.save(folder / f"{name}.png")
                show(f"{folder.name}/{name}", np.asarray(picture))
                if rows:
                    path = folder / f"{name}.csv"
                    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                        csv.writer(file).writerows(map(_cell, row) for row in rows)
        if any("missing from font" in str(warning.message) for warning in found):
            log("no installed font has some letters in the pictures; for Chinese: apt install fonts-noto-cjk")
        log(f"tables and pictures are in {folder}")
    except Exception as error:
        log(f"the report in {folder} is incomplete ({type(error).__name__}: {error})")


def curves(records: Sequence[dict[str, float]], x: str, panels: dict[str, dict[str, str]]) -> Part:
    """Lines over the course of a training; the table has every number of the records.

    Args:
        records: in the order of their key `x`, which also labels the horizontal axis.
        panels: for each label of a vertical axis, the keys drawn there and their names.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    for axes, (label, lines) in zip(figure.subplots(1, len(panels)), panels.items()):
        for (key, name), color in zip(lines.items(), _COLORS):
            if not (points := [(record[x], record[key]) for record in records if key in record]):
                continue
            axes.plot(*np.reshape(points, (-1, 2)).T, "." if len(points) < 50 else "", ls="-", label=name, color=color)
        axes.set(xlabel=x, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    keys = list(dict.fromkeys([x, *(key for record in records for key in record)]))
    return "curves", figure, [keys, *([record.get(key, "") for key in keys] for record in records)]


def evaluation(
    what: str,
    unit: str,
    names: Sequence[str],
    rows: np.ndarray,
    tiles: Sequence[Tile],
    columns: int,
    *,
    scores: dict[str, np.ndarray] | None = None,
    precision: np.ndarray | None = None,
    note: str = "",
) -> Iterator[Part]:
    """A table of classes, a confusion matrix, precision and recall, and some pictures of an evaluation of K classes.

    Args:
        what: for titles, such as `validation, epoch 12`.
        unit: what is counted: `images`, `objects` or `pixels`.
        names: of the K classes.
        rows: `(m, 4)`: true label, predicted label, score, number of units; the label K is none of the classes.
        tiles: images with the truth and what was predicted, in rows of `columns`.
        scores: the metrics of each class, `(K,)`, percent or NaN; defaults to accuracy or, of pixels, IoU.
        precision: `(101, K)`, 0 to 1 or NaN, at the recalls 0, 0.01, ... 1; defaults to that of `rows`.
        note: when a prediction counts as right, if it needs to be said.
    """
    count = len(names)
    pairs, places = np.unique(rows[:, :2].astype(int), axis=0, return_inverse=True)
    confusion = np.column_stack([pairs, np.bincount(places.ravel(), rows[:, 3])]).astype(int)
    titles = "\n".join([f"{{}}, {what}", *filter(None, [note])])
    yield _classes(unit, names, confusion, scores, what)
    yield _confusion_matrix(unit, names, confusion, titles.format("Confusion matrix"))
    values = _precision_at_recall(rows, count) if precision is None else precision
    yield _precision_recall(names, 100 * values, titles.format("Precision and recall"))
    if tiles:
        yield "predictions", _grid(tiles, columns, what), ()


def _cell(value: object) -> object:
    return value if not isinstance(value, float) else "" if np.isnan(value) else f"{value:.6g}"


def _label(name: str, length: int = 24) -> str:
    """A name for a picture: short, and without what matplotlib takes for mathematics or for "not in the legend"."""
    short = name if len(name) <= length else f"{name[: length // 2]}…{name[length // 2 + 1 - length :]}"
    return " " * short.startswith("_") + short.replace("$", r"\$")


def _axes(width: float, height: float, title: str) -> tuple:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100.0 * part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _precision_at_recall(rows: np.ndarray, classes: int) -> np.ndarray:
    """Precision `(101, K)` while the lowest accepted score falls, as COCO interpolates it; 0 beyond the last recall."""
    truth, predicted, score, count = rows.T
    positives = np.bincount(truth.astype(int), count, classes + 1)
    order = np.lexsort((-score, predicted))
    bounds = np.searchsorted(predicted[order], np.arange(classes + 1))
    result = np.full((len(_RECALL), classes), np.nan)
    for label in np.flatnonzero(positives[:classes]):
        mine = order[bounds[label] : bounds[label + 1]]
        last = np.flatnonzero(np.append(np.diff(score[mine]) != 0, True))[: len(mine)]  # of each score
        right = np.cumsum(count[mine] * (truth[mine] == label))[last]
        precision = right / np.cumsum(count[mine])[last]
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        result[:, label] = best[np.searchsorted(right / positives[label], _RECALL - 1e-9)]
    return result


def _classes(unit: str, names: Sequence[str], confusion: np.ndarray, scores: dict | None, what: str) -> Part:
    truth, predicted, number = confusion.T
    counted = (truth, number), (predicted, number), (truth, number * (truth == predicted))
    truths, predictions, right = (np.bincount(*pair, len(names) + 1)[: len(names)] for pair in counted)
    if scores is None:
        iou = {"IoU": _percent(right, truths + predictions - right)}
        scores = iou if unit == "pixels" else {"top-1 accuracy": _percent(right, truths)}
    columns = {**scores, "precision": _percent(right, predictions), "recall": _percent(right, truths)}
    header = ["class", unit, *(f"{name} (%)" for name in columns)]
    rows = [header, *zip(names, truths.astype(int).tolist(), *(column.tolist() for column in columns.values()))]

    name, values = next(iter(columns.items()))
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN is last
    title = f"{name} of each class (mean {values[order].mean() if len(order) else np.nan:.1f})\n{what}"
    if len(order) > _MOST_BARS:
        title += f"\nthe {_MOST_BARS // 2} best and worst of {len(order)} classes"
        order = np.r_[order[: _MOST_BARS // 2], order[-_MOST_BARS // 2 :]]
    figure, axes = _axes(7, 1.4 + 0.24 * len(order), title)
    axes.bar_label(axes.barh(np.arange(len(order)), values[order], color=_SKY), fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(np.arange(len(order)), [_label(names[label]) for label in order], fontsize=8)
    axes.set(xlim=(0, 108), ylim=(-0.7, len(order) - 0.3), xlabel=f"{name} (%)")
    return "classes", figure, rows


def _confusion_matrix(unit: str, names: Sequence[str], confusion: np.ndarray, title: str) -> Part:
    count, names = len(names), [*names, "none"]
    confusion = confusion[np.argsort(-confusion[:, 2], kind="stable")]
    rows = [("truth", "predicted", unit), *((names[a], names[b], n) for a, b, n in confusion.tolist())]

    wrong = confusion[(confusion[:, 0] != confusion[:, 1]) & (confusion[:, :2] < count).all(1), :2]
    chosen = sorted(list(dict.fromkeys([*wrong.ravel().tolist(), *range(count)]))[:_MOST_CELLS])
    chosen += [count] * bool((confusion[:, :2] == count).any())
    places = np.full(count + 1, -1)
    places[chosen] = np.arange(len(chosen))
    inside = confusion[(places[confusion[:, :2]] >= 0).all(1)]
    cells = np.zeros((len(chosen), len(chosen)))
    cells[tuple(places[inside[:, :2]].T)] = inside[:, 2]
    cells *= 100 / np.maximum(np.bincount(confusion[:, 0], confusion[:, 2], count + 1)[chosen], 1)[:, None]

    if count > _MOST_CELLS:
        title += f"\nthe {_MOST_CELLS} most confused of {count} classes"
    size = max(4.5, 2.5 + 0.34 * len(chosen))
    figure, axes = _axes(size + 1, size, title)
    drawn = axes.imshow(cells, cmap="Blues", vmin=0, vmax=100)
    for y, x in np.argwhere(cells >= 0.5):
        color = "white" if cells[y, x] > 50 else "black"
        axes.text(x, y, f"{cells[y, x]:.0f}", ha="center", va="center", fontsize=8, color=color)
    ticks = range(len(chosen)), [_label(names[label], 18) for label in chosen]
    axes.set_xticks(*ticks, rotation=90, fontsize=8)
    axes.set_yticks(*ticks, fontsize=8)
    axes.set(xlabel="predicted", ylabel="truth")
    figure.colorbar(drawn, label=f"share of the row's {unit} (%)", shrink=0.8)
    return "confusion_matrix", figure, rows


def _precision_recall(names: Sequence[str], values: np.ndarray, title: str) -> Part:
    known = np.flatnonzero(~np.isnan(values).any(0))
    mean = values[:, known].mean(1) if len(known) else np.full(len(_RECALL), np.nan)
    figure, axes = _axes(7, 5, title)
    for label, color in zip(known, _COLORS) if len(known) <= len(_COLORS) else ():
        name = f"{_label(names[label])} ({values[:, label].mean():.1f})"
        axes.plot(100 * _RECALL, values[:, label], color=color, label=name)
    if len(known) > len(_COLORS):
        middle = np.percentile(values[:, known], [10, 90], axis=1)
        axes.fill_between(100 * _RECALL, *middle, color=_SKY, alpha=0.4, label="middle 80% of the classes")
    axes.plot(100 * _RECALL, mean, color="black", linewidth=2.5, label=f"mean of the classes ({mean.mean():.1f})")
    axes.set(xlim=(0, 101), ylim=(0, 103), xlabel="recall (%)", ylabel="precision (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="(mean precision)", title_fontsize=8)
    columns = mean.tolist(), *values.T.tolist()
    return "precision_recall", figure, [["recall (%)", "mean", *names], *zip(range(101), *columns)]


def _grid(tiles: Sequence[Tile], columns: int, title: str) -> Figure:
    rows = -(-len(tiles) // columns)
    shape = max(min(2.0, image.height / image.width) for image, *_ in tiles)
    figure = Figure(figsize=(15, (15 / columns * shape + 0.4) * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(tiles) :]:
        axis.set_visible(False)
    for axis, (image, caption, right) in zip(axes.flat, tiles):
        axis.imshow(image)
        color = {None: "black", True: _BLUE, False: _VERMILLION}[right]
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=color, linewidth=0.5 if right is None else 3)
        caption = "\n".join(_label(line, 220 // columns) for line in caption.split("\n"))
        axis.set_xlabel(caption, fontsize=8, color=color)
    figure.suptitle(title)
    return figure
