"""What a run leaves behind: its curves and its last evaluation as pictures (PNG) and tables (CSV).

Tasks gather plain arrays; this module draws and writes them. Empty cells of a table are values that are not defined,
such as the precision of a class that was never predicted.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

__all__ = ["Evaluation", "Part", "Tile", "class_counts", "curves", "percent", "precision_at_recall", "write_report"]

# Okabe and Ito's colours, which the colour-blind tell apart too.
_BLUE, _VERMILLION, _SKY = "#0072B2", "#D55E00", "#56B4E9"
_COLORS = (_BLUE, "#E69F00", "#009E73", "#CC79A7", _SKY, _VERMILLION, "#F0E442", "#999999")
_RECALL = np.linspace(0, 1, 101)  # COCO's levels
_MOST_BARS, _MOST_CELLS = 40, 25  # classes that a picture has room for


class Part(NamedTuple):
    """A picture and the rows of a table, for files of the same name."""

    name: str
    figure: Figure
    rows: Iterable[Sequence] = ()


class Tile(NamedTuple):
    """A picture of a grid; it gets a frame, blue or vermillion, that says whether it is right."""

    image: Image.Image
    caption: str
    right: bool | None = None


@dataclass
class Evaluation:
    """What an evaluation of K classes found.

    Attributes:
        what: for titles, such as `validation, epoch 12`.
        unit: what is counted: `images`, `objects` or `pixels`.
        names: of the K classes.
        confusion: `(m, 3)`, int64: true label, predicted label, number of units; the label K is `other`.
        scores: by name the task's metric, and others after it, of each class: `(K,)`, percent or NaN.
        precision: of `precision_at_recall`.
        tiles: images with the truth and what was predicted, in rows of `columns`; None leaves a gap.
        other: the name of what is none of the classes.
        note: when a prediction counts as right, if it needs to be said.
    """

    what: str
    unit: str
    names: Sequence[str]
    confusion: np.ndarray
    scores: dict[str, np.ndarray]
    precision: np.ndarray
    tiles: Sequence[Tile | None]
    columns: int
    other: str = ""
    note: str = ""

    def parts(self) -> Iterator[Part]:
        """The pictures and tables."""
        yield _class_table(self)
        yield _confusion_matrix(self)
        yield _precision_recall(self)
        if self.tiles:
            yield Part("predictions", _grid(self.tiles, self.columns, self.what))


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure, rows in parts():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            Image.fromarray(pixels).save(folder / f"{name}.png")
            show(f"{folder.name}/{name}", pixels)
            if rows:
                with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                    csv.writer(file).writerows(map(_cell, row) for row in rows)
        log(f"curves, tables and pictures are in {folder}")
    except Exception as error:
        log(f"the report in {folder} is incomplete ({type(error).__name__}: {error})")


def _cell(value: object) -> object:
    return value if not isinstance(value, float) else "" if np.isnan(value) else f"{value:.6g}"


def _label(name: str, length: int = 24) -> str:
    """A name for a picture: short, and without what matplotlib takes for mathematics or for "not in the legend"."""
    short = name if len(name) <= length else f"{name[: length - 1]}…"
    return " " * short.startswith("_") + short.replace("$", r"\$")


# Numbers


def class_counts(confusion: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of an `Evaluation.confusion`: how many units are of each class, are predicted as it, and both; `(K,)` each."""
    truth, predicted, count = confusion.T
    pairs = (truth, count), (predicted, count), (truth, count * (truth == predicted))
    return tuple(np.bincount(labels, weights, classes + 1)[:classes] for labels, weights in pairs)


def percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Percentages; NaN where the whole is 0."""
    return np.divide(100.0 * part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def precision_at_recall(rows: np.ndarray, classes: int) -> np.ndarray:
    """Precision of K classes at 101 levels of recall while the lowest accepted score falls, as COCO interpolates it.

    Args:
        rows: `(m, 4)`: true label, predicted label, score, number of units.
        classes: K.

    Returns:
        `(101, K)`, 0 to 1; NaN for classes without truths; 0 where a recall is not reached.
    """
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


# Pictures


def _axes(width: float, height: float) -> tuple[Figure, object]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def curves(records: Sequence[dict[str, float]], x: str, panels: dict[str, dict[str, str]]) -> Part:
    """Lines over the course of a training; the table has every number of the records.

    Args:
        records: in the order of their key `x`, which also labels the horizontal axis.
        panels: for each label of a vertical axis, the keys drawn there and their names.
    """
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    for axes, (label, lines) in zip(figure.subplots(1, len(panels)), panels.items()):
        for (key, name), color in zip(lines.items(), _COLORS):
            points = [(record[x], record[key]) for record in records if key in record]
            if points:
                axes.plot(*zip(*points), marker="." if len(points) < 50 else "", label=name, color=color)
        axes.set(xlabel=x, ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    keys = list(dict.fromkeys([x, *(key for record in records for key in record)]))
    return Part("curves", figure, [keys, *([record.get(key, "") for key in keys] for record in records)])


def _class_table(found: Evaluation) -> Part:
    truths, predictions, right = class_counts(found.confusion, len(found.names))
    columns = {**found.scores, "precision": percent(right, predictions), "recall": percent(right, truths)}
    header = ["class", found.unit, *(f"{name} (%)" for name in columns)]
    rows = [header, *zip(found.names, truths.astype(int).tolist(), *(column.tolist() for column in columns.values()))]

    name, values = next(iter(columns.items()))
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN is last
    title = f"{name} of each class (mean {values[order].mean() if len(order) else np.nan:.1f}), {found.what}"
    if len(order) > _MOST_BARS:
        title += f"\nthe {_MOST_BARS // 2} best and worst of {len(order)} classes"
        order = np.r_[order[: _MOST_BARS // 2], order[-_MOST_BARS // 2 :]]
    figure, axes = _axes(7, 1.4 + 0.24 * len(order))
    bars = axes.barh(np.arange(len(order)), values[order], color=_SKY)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(np.arange(len(order)), [_label(found.names[label]) for label in order], fontsize=8)
    axes.set(xlim=(0, 108), ylim=(-0.7, len(order) - 0.3), xlabel=f"{name} (%)")
    axes.set_title(title, fontsize=10)
    return Part("classes", figure, rows)


def _confusion_matrix(found: Evaluation) -> Part:
    count, confusion = len(found.names), found.confusion[np.argsort(-found.confusion[:, 2], kind="stable")]
    names = [*found.names, found.other]
    rows = [("truth", "predicted", found.unit), *((names[a], names[b], n) for a, b, n in confusion.tolist())]

    wrong = confusion[(confusion[:, 0] != confusion[:, 1]) & (confusion[:, :2] < count).all(1), :2]
    chosen = sorted(list(dict.fromkeys([*wrong.ravel().tolist(), *range(count)]))[:_MOST_CELLS])
    chosen += [count] * bool((confusion[:, :2] == count).any())
    places = np.full(count + 1, -1)
    places[chosen] = np.arange(len(chosen))
    inside = confusion[(places[confusion[:, :2]] >= 0).all(1)]
    cells = np.zeros((len(chosen), len(chosen)))
    cells[tuple(places[inside[:, :2]].T)] = inside[:, 2]
    totals = np.bincount(confusion[:, 0], confusion[:, 2], count + 1)[chosen]
    cells *= 100 / np.maximum(totals, 1)[:, None]

    size = max(4.5, 2.5 + 0.34 * len(chosen))
    figure, axes = _axes(size + 1, size)
    drawn = axes.imshow(cells, cmap="Blues", vmin=0, vmax=100)
    for y, x in np.argwhere(cells >= 0.5):
        color = "white" if cells[y, x] > 50 else "black"
        axes.text(x, y, f"{cells[y, x]:.0f}", ha="center", va="center", fontsize=8, color=color)
    ticks = range(len(chosen)), [_label(names[label], 18) for label in chosen]
    axes.set_xticks(*ticks, rotation=90, fontsize=8)
    axes.set_yticks(*ticks, fontsize=8)
    which = f"the {_MOST_CELLS} most confused of {count} classes" if count > _MOST_CELLS else ""
    title = "\n".join(filter(None, [f"Confusion matrix, {found.what}", which, found.note]))
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="predicted", ylabel="truth")
    figure.colorbar(drawn, label=f"share of the row's {found.unit} (%)", shrink=0.8)
    return Part("confusion_matrix", figure, rows)


def _precision_recall(found: Evaluation) -> Part:
    values = 100 * found.precision
    known = np.flatnonzero(~np.isnan(values).any(0))
    mean = values[:, known].mean(1) if len(known) else np.full(len(_RECALL), np.nan)
    figure, axes = _axes(7, 5)
    if len(known) <= len(_COLORS):
        for label, color in zip(known, _COLORS):
            name = f"{_label(found.names[label])} ({values[:, label].mean():.1f})"
            axes.plot(100 * _RECALL, values[:, label], color=color, label=name)
    else:
        low, high = np.percentile(values[:, known], [10, 90], axis=1)
        axes.fill_between(100 * _RECALL, low, high, color=_SKY, alpha=0.4, label="80% of the classes")
    axes.plot(100 * _RECALL, mean, color="black", linewidth=2.5, label=f"mean of the classes ({mean.mean():.1f})")
    axes.set(xlim=(0, 101), ylim=(0, 103), xlabel="recall (%)", ylabel="precision (%)")
    axes.set_title("\n".join(filter(None, [f"Precision and recall, {found.what}", found.note])), fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="class (mean precision)", title_fontsize=8, loc="lower left")
    columns = (mean.tolist(), *values.T.tolist())
    return Part("precision_recall", figure, [["recall (%)", "mean", *found.names], *zip(range(101), *columns)])


def _grid(tiles: Sequence[Tile | None], columns: int, title: str) -> Figure:
    rows = -(-len(tiles) // columns)
    shape = max(min(2.0, tile.image.height / tile.image.width) for tile in tiles if tile)
    figure = Figure(figsize=(15, (15 / columns * shape + 0.4) * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, tile in zip(axes.flat, [*tiles, *[None] * (rows * columns - len(tiles))]):
        axis.set(xticks=[], yticks=[], visible=tile is not None)
        if tile:
            axis.imshow(tile.image)
            color = {None: "black", True: _BLUE, False: _VERMILLION}[tile.right]
            axis.spines[:].set(color=color, linewidth=0.5 if tile.right is None else 3)
            caption = "\n".join(_label(line, 220 // columns) for line in tile.caption.split("\n"))
            axis.set_xlabel(caption, fontsize=8, color=color)
    figure.suptitle(title)
    return figure
