"""`internimage verify`: evaluate the released models and compare them with the published figures."""

import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch

from .errors import ArgumentParser, UserError
from .files import atomic_path, check_writable
from .zoo import Release, checkpoint_path, releases

__all__ = ["Figure", "main"]

# Columns of the model zoo with figures in percent, and what the evaluation calls them.
_METRICS = {
    "acc@1": "top1",
    "box mAP": "coco/bbox_mAP",
    "mask mAP": "coco/segm_mAP",
    "minival (ss)": "lvis/bbox_AP",
    "val (ss/ms)": "lvis/bbox_AP",
    "mAP (ss)": "openimages/mAP",
    "VOC 2007": "pascal_voc/mAP",
    "VOC 2012": "",
    "mIoU (ss/ms)": "mIoU",
    "mIoU (ss)": "mIoU",
}
_IN_PERCENT = ("top1", "mIoU")  # the others are from 0 to 1


@dataclass
class Figure:
    """One published figure: a row of the result."""

    name: str  # of the configuration, or of the weights if there is none
    metric: str  # column of the model zoo; ss, ms: a single scale, or several ones with mirror images
    published: float | None = None  # in percent
    measured: float | None = None
    difference: float | None = None  # measured - published, in points
    status: str = ""  # ok, off, failed: REASON, or skipped: REASON


@dataclass
class _Run:
    """One evaluation, and its figures by what the evaluation calls them."""

    release: Release
    config: str
    augmented: bool  # with several scales and mirror images
    figures: dict[str, Figure]


def _runs(release: Release) -> Iterator[_Run]:
    """The evaluations that a row of the model zoo needs."""
    columns = [(column, text) for column, text in release.facts.items() if column in _METRICS and text[0].isdigit()]
    values = [(column, *part) for column, text in columns for part in enumerate(text.split(" / "))]
    configs = release.config.split() or [""]
    if not values:
        figure = Figure(Path(configs[0]).stem or release.name, "", status="skipped: no published figure")
        yield _Run(release, "", False, {"": figure})
    found: dict[tuple[str, bool], _Run] = {}
    for (column, number, text), config in zip(values, configs * len(values) if len(configs) == 1 else configs):
        figure = Figure(Path(config).stem, column.replace("ss/ms", ("ss", "ms")[number]), float(text))
        if not release.checkpoint:
            figure.status = "skipped: no weights released"
        elif not _METRICS[column]:
            figure.status = "skipped: measured by the server of the data set only"
        augmented = number == 1 or config.endswith("_ms.py")
        found.setdefault((config, augmented), _Run(release, config, augmented, {})).figures[_METRICS[column]] = figure
    yield from found.values()


def _select(names: Sequence[str]) -> list[Release]:
    """The rows of these names, of weights or configurations; all without a name. Raises `UserError`."""
    rows = [(row, {row.name, *(Path(config).stem for config in row.config.split())}) for row in releases()]
    if unknown := set(names).difference(*(own for _, own in rows)):
        raise UserError(f"the model zoo has no {unknown.pop()!r}; internimage models lists the names")
    return [row for row, own in rows if not names or own & set(names)]


def _moved(node: object, data: str, key: str) -> Iterator[tuple[str, str]]:
    """Settings of a configuration's tree at `key` that read `data/...` from the folder `data`."""
    if isinstance(node, (Mapping, list, tuple)):
        for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _moved(value, data, f"{key}.{name}")
    elif isinstance(node, str) and node.startswith("data/"):
        yield key, data + node.removeprefix("data")


def _evaluate(run: _Run, data: Path, output: Path) -> Mapping[str, float]:
    """What the task's script measures. Raises `UserError`, and whatever an evaluation raises."""
    release, path = run.release, Path(__file__).parents[1] / run.config
    checkpoint = str(checkpoint_path(release.name))
    if release.task == "classification":
        from classification.config import get_config, parse_args
        from classification.train import distributed, run_evaluation, set_tf32

        config = get_config(parse_args(["--eval", "--resume", checkpoint, "--cfg", str(path)]))
        config.defrost()
        config.DATA.DATA_PATH = str(data / config.DATA.DATASET)
        config.freeze()
        world = distributed.start(config.LAUNCHER, config.LOCAL_RANK)
        set_tf32(world.device, config.TF32)
        return run_evaluation(config, world)
    from .mm import runner
    from .mm.checks import read_config

    config = read_config(str(path))
    parts = ("test_dataloader", "test_evaluator")
    settings = {key: value for part in parts for key, value in _moved(config[part], str(data), part)}
    argv = [str(path), checkpoint, "--output", str(output / path.stem), *(["--tta"] if run.augmented else [])]
    return runner.evaluate(getattr(runner, release.task.upper()), argv, settings)


def _write(rows: list[Figure], folder: Path) -> None:
    with atomic_path(folder / "verify.json") as path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def _print_table(rows: list[Figure]) -> None:
    cells = [list(Figure.__annotations__)]
    cells += [["" if value is None else str(value)[:80] for value in asdict(row).values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(f"{text:{width}}" for text, width in zip(line, widths)).rstrip())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with 1 if a figure is off or could not be measured."""
    description = "Download released models, evaluate them, and compare with the published figures."
    parser = ArgumentParser(prog="internimage verify", description=description, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of weights or configurations; defaults to all")
    help = "folder of all data sets, named as in the configurations: coco, imagenet, ...; default: %(default)s"
    parser.add_argument("--data-path", type=Path, default=Path("data"), metavar="DIR", help=help)
    help = "folder for verify.json and the logs; default: %(default)s"
    parser.add_argument("--output", type=Path, default=Path("verify"), metavar="DIR", help=help)
    help = "largest difference that counts as equal, in points; default: %(default)s"
    parser.add_argument("--tolerance", type=float, default=0.1, metavar="POINTS", help=help)
    args = parser.parse_args(argv)
    runs = [run for release in _select(args.names) for run in _runs(release)]
    rows = [figure for run in runs for figure in run.figures.values()]
    runs = [run for run in runs if not any(figure.status for figure in run.figures.values())]
    check_writable(args.output / "verify.json")
    _write(rows, args.output)
    start = time.monotonic()
    for done, run in enumerate(runs):
        name, each = Path(run.config).stem, (time.monotonic() - start) / max(done, 1)
        left = f", about {timedelta(seconds=round(each * (len(runs) - done)))} left" if done else ""
        print(f"[{done + 1}/{len(runs)}] {name}{' (ms)' if run.augmented else ''}{left}", flush=True)
        try:
            measured = _evaluate(run, args.data_path, args.output)
            if missing := run.figures.keys() - measured.keys():
                raise UserError(f"the evaluation gave no {', '.join(missing)}; {name} has another metric")
            for key, figure in run.figures.items():
                figure.measured = round(float(measured[key]) * (1 if key in _IN_PERCENT else 100), 3)
                figure.difference = round(figure.measured - figure.published, 3)
                figure.status = "ok" if abs(figure.difference) <= args.tolerance else "off"
        except Exception as error:  # whatever ends an evaluation, the others go on
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = kind + (str(error).strip().splitlines() or [""])[0]
            print(f"error: {name}: {reason}", file=sys.stderr, flush=True)
            for figure in run.figures.values():
                figure.status = f"failed: {reason}"
        _write(rows, args.output)
        gc.collect()  # models and their hooks refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    _print_table(rows)
    wrong = sum(row.status.startswith(("off", "failed")) for row in rows)
    print(f"{len(rows)} figures: {sum(row.status == 'ok' for row in rows)} ok, {wrong} off or failed; {args.output}")
    sys.exit(int(wrong > 0))
