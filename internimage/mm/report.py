"""The report of a detector or segmentor: gathered while mmengine evaluates, written when the run ends."""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization import LocalVisBackend
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils.data import Dataset

from ..images import read_image
from ..report import Evaluation, Part, Tile, class_counts, curves, percent, precision_at_recall, write_report
from ..results import DetectionResult, Result, SegmentationResult

__all__ = ["ReportHook"]

_THRESHOLD = 0.3  # lowest score of an object in the confusion matrix and in pictures
_IOU = 0.5  # from which on an object counts as found
_PICTURES, _COLUMNS = 8, 4
_BINS = 20  # of the confidence of a pixel


class ReportHook(Hook):
    """Write curves and the last validation to `report` in the work folder, a test to `report_test`.

    What is gathered is small: objects, or the numbers of pixels. Errors are logged and end nothing.
    """

    def __init__(self, task: str) -> None:
        self._collect, self._evaluate = _TASKS[task]
        self._rows: list[dict] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the validation before."""
        self._rows = []

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: Sequence | None = None
    ) -> None:
        """Gather what the model predicts for a batch."""
        try:
            self._rows += [self._collect(sample, len(self._rows) < _PICTURES) for sample in outputs]
        except Exception as error:
            runner.logger.warning(f"no report of the evaluations: {type(error).__name__}: {error}")
            self._rows, self._collect = [], lambda *_: {}

    after_test_iter = after_val_iter

    def after_train(self, runner: Runner) -> None:
        """Write the curves and the last validation."""
        loop = runner.train_loop
        done = f"epoch {loop.epoch}" if isinstance(loop, EpochBasedTrainLoop) else f"iteration {loop.iter}"
        dataset = runner.val_dataloader.dataset if runner.val_loop else None
        self._write(runner, "report", f"validation, {done}", dataset, trained=True)

    def after_test(self, runner: Runner) -> None:
        """Write the test."""
        self._write(runner, "report_test", "test", runner.test_dataloader.dataset)

    def _write(self, runner: Runner, name: str, what: str, dataset: Dataset | None, *, trained: bool = False) -> None:
        rows = collect_results(self._rows, len(dataset), "cpu") if dataset else []
        if not is_main_process():
            return

        def parts() -> Iterator[Part]:
            if trained:
                yield _curves(runner)
            if rows and all(rows):
                yield from self._evaluate(rows, dataset, what).parts()

        def show(title: str, pixels: np.ndarray) -> None:
            for backend in runner.visualizer._vis_backends.values():
                if not isinstance(backend, LocalVisBackend):  # which would write the file a second time
                    backend.add_image(title, pixels, runner.iter if trained else 0)

        write_report(Path(runner.work_dir, name), parts, runner.logger.info, show)


def _curves(runner: Runner) -> Part:
    """The losses and metrics of all starts of this run by iteration, from mmengine's logs."""
    per_epoch = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else 1
    records: dict[int, dict[str, float]] = {}
    metrics: dict[str, str] = {}
    for path in sorted(Path(runner.work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            step, trains = record.pop("step"), "iter" in record
            step *= 1 if trains else per_epoch
            values = {key: value for key, value in record.items() if key not in ("iter", "epoch", "time", "data_time")}
            if not trains:
                metrics |= {key: key for key in values if not key.endswith(("_75", "_s", "_m", "_l"))}
            records.setdefault(step, {"iteration": step}).update(values)
    ordered = [records[step] for step in sorted(records) if step <= runner.iter]
    return curves(ordered, "iteration", {"training loss": {"loss": "sum of all losses"}, "validation": metrics})


def _tiles(pairs: Sequence[tuple[Result, Result]]) -> list[Tile | None]:
    """Rows of true and of predicted results in turn."""
    tiles: list[Tile | None] = []
    for start in range(0, len(pairs), _COLUMNS):
        for row, word in zip(zip(*pairs[start : start + _COLUMNS]), ("truth", "prediction")):
            tiles += [Tile(result.plot(), f"{word} {Path(result.source).name}") for result in row]
            tiles += [None] * (_COLUMNS - len(row))
    return tiles


def _palette(dataset: Dataset) -> Sequence:
    palette = dataset.metainfo.get("palette")
    return () if palette is None or isinstance(palette, str) else palette


# Detection


def _numpy(value: Tensor | np.ndarray) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _collect_objects(sample: object, pictured: bool) -> dict:
    found = sample.pred_instances
    row = {key: _numpy(found[key]) for key in ("bboxes", "scores", "labels")} | {"path": sample.img_path}
    if pictured and "masks" in found:
        masks = _numpy(found.masks[found.scores >= _THRESHOLD])
        row["masks"] = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return row


def _coco(images: list[dict], classes: int, annotations: list[dict]) -> COCO:
    """COCO's index of annotations with `box`, `(4,)`, corners."""
    coco, entries = COCO(), []
    for number, item in enumerate(annotations, 1):
        x1, y1, x2, y2 = map(float, item["box"])
        bbox, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
        entries.append({"iscrowd": 0, **item, "id": number, "bbox": bbox, "area": area})
    coco.dataset = {"images": images, "categories": [{"id": k} for k in range(classes)], "annotations": entries}
    coco.createIndex()
    return coco


def _precision(truth: COCO, found: COCO) -> np.ndarray:
    """Precision `(10, 101, K)` at IoU 0.5, 0.55, ... 0.95; NaN for classes without objects."""
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]
    return np.where(precision < 0, np.nan, precision)


def _pairs(truths: list[dict], found: list[dict], nothing: int) -> Iterator[tuple[int, int]]:
    """True and predicted label of every object of an image; `nothing` where only one side has it."""
    found = [item for item in found if item["score"] >= _THRESHOLD]
    true, labels = ([item["category_id"] for item in items] for items in (truths, found))
    boxes = [np.array([item["bbox"] for item in items]).reshape(-1, 4) for items in (found, truths)]
    crowd = np.array([item["iscrowd"] for item in truths], np.uint8)
    ious = np.reshape(coco_mask.iou(*boxes, crowd), (len(found), len(truths)))
    near = (ious >= _IOU) & (crowd == 0)
    # Of several objects near enough, one of the same class.
    matches = zip(*linear_sum_assignment(near * (ious + np.equal.outer(labels, true)), maximize=True))
    matches = [(int(of), int(to)) for of, to in matches if near[of, to]]
    yield from ((true[to], labels[of]) for of, to in matches)
    taken, hit = ({pair[side] for pair in matches} for side in (0, 1))
    excused = taken | set(np.flatnonzero(((ious >= _IOU) & (crowd == 1)).any(1)).tolist())
    yield from ((label, nothing) for at, label in enumerate(true) if at not in hit and not crowd[at])
    yield from ((nothing, label) for at, label in enumerate(labels) if at not in excused)


def _evaluate_objects(rows: list[dict], dataset: Dataset, what: str) -> Evaluation:
    names, images, truths, found = list(dataset.metainfo["classes"]), [], [], []
    for number, row in enumerate(rows):
        info = dataset.get_data_info(number)
        images.append({"id": number, "height": info.get("height"), "width": info.get("width")})
        for item in info["instances"]:
            entry = {"image_id": number, "category_id": item["bbox_label"], "box": item["bbox"]}
            truths.append({**entry, "iscrowd": int(item["ignore_flag"]), "segmentation": item.get("mask")})
        parts = zip(row["labels"].tolist(), row["bboxes"], row["scores"].tolist())
        found += [{"image_id": number, "category_id": k, "box": box, "score": score} for k, box, score in parts]
    with contextlib.redirect_stdout(io.StringIO()):
        true, found = (_coco(images, len(names), items) for items in (truths, found))
        precision = _precision(true, found)
    pairs = [_pairs(true.imgToAnns[i], found.imgToAnns[i], len(names)) for i in range(len(rows))]
    pairs = np.array([pair for image in pairs for pair in image], np.int64).reshape(-1, 2)
    labels, counts = np.unique(pairs, axis=0, return_counts=True)

    def result(path: str, items: list[dict], masks: list[np.ndarray] | None) -> DetectionResult:
        of_class = [item["category_id"] for item in items]
        boxes = np.array([item["box"] for item in items], np.float32).reshape(-1, 4)
        scores = np.array([item.get("score", np.nan) for item in items])
        parts = boxes, scores, np.array(of_class, int), [names[label] for label in of_class], masks, _palette(dataset)
        return DetectionResult(np.asarray(read_image(path)), path, *parts)

    pictures = []
    for number, row in enumerate(rows[:_PICTURES]):
        items = [item for item in found.imgToAnns[number] if item["score"] >= _THRESHOLD]
        masks = [coco_mask.decode(mask).astype(bool) for mask in row["masks"]] if "masks" in row else None
        own = [item for item in true.imgToAnns[number] if not item["iscrowd"]]
        with_masks = masks is not None and all(item["segmentation"] for item in own)
        own_masks = [true.annToMask(item).astype(bool) for item in own] if with_masks else None
        pictures.append((result(row["path"], own, own_masks), result(row["path"], items, masks)))
    return Evaluation(
        *(what, "objects", names, np.column_stack([labels, counts])),
        {"AP": 100 * precision.mean((0, 1)), "AP50": 100 * precision[0].mean(0)},
        precision[0],
        *(_tiles(pictures), _COLUMNS, "background"),
        note=f"IoU of at least {_IOU}; matrix and pictures: score of at least {_THRESHOLD}",
    )


# Segmentation


def _confidence(sample: object, predicted: Tensor) -> Tensor:
    """Probability of the predicted class `(H, W)`; 0 where only labels are known (test-time augmentation)."""
    if "seg_logits" not in sample:
        return torch.zeros_like(predicted, dtype=torch.float32)
    logits = sample.seg_logits.data
    if len(logits) == 1:  # already a probability
        return torch.where(predicted > 0, logits[0], 1 - logits[0])
    rows = (part.float() for part in logits.split(64, 1))  # not all at once, which would double the memory
    return torch.cat([(part.amax(0) - part.logsumexp(0)).exp() for part in rows])


def _collect_pixels(sample: object, pictured: bool) -> dict:
    predicted = sample.pred_sem_seg.data[0].long()
    truth = sample.gt_sem_seg.data[0].to(predicted)
    # Most probabilities are near 1: a power spreads them over the bins.
    level = (_confidence(sample, predicted) ** 4 * (_BINS - 1)).round().long()
    codes, counts = torch.unique((truth << 32) + (predicted << 16) + level, return_counts=True)
    row = {"codes": codes.cpu().numpy(), "counts": counts.cpu().numpy(), "path": sample.img_path}
    if pictured:
        row["maps"] = [labels.cpu().numpy().astype(np.int16) for labels in (truth, predicted)]
    return row


def _evaluate_pixels(rows: list[dict], dataset: Dataset, what: str) -> Evaluation:
    names, palette = list(dataset.metainfo["classes"]), _palette(dataset)
    codes, places = np.unique(np.concatenate([row["codes"] for row in rows]), return_inverse=True)
    counts = np.bincount(places, np.concatenate([row["counts"] for row in rows])).astype(np.int64)
    truth, predicted, level = codes >> 32, np.minimum(codes >> 16 & 0xFFFF, len(names)), codes & 0xFFFF
    units = np.column_stack([truth, predicted, level, counts])[truth < len(names)]  # 255 is no class
    labels, places = np.unique(units[:, :2], axis=0, return_inverse=True)
    confusion = np.column_stack([labels, np.bincount(places.ravel(), units[:, 3])]).astype(np.int64)
    truths, predictions, right = class_counts(confusion, len(names))
    pictures = []
    for row in (row for row in rows[:_PICTURES] if "maps" in row):
        image = np.asarray(read_image(row["path"]))
        pictures.append(tuple(SegmentationResult(image, row["path"], labels, names, palette) for labels in row["maps"]))
    return Evaluation(
        *(what, "pixels", names, confusion, {"IoU": percent(right, truths + predictions - right)}),
        *(precision_at_recall(units, len(names)), _tiles(pictures), _COLUMNS, "other classes"),
    )


_TASKS = {"detection": (_collect_objects, _evaluate_objects), "segmentation": (_collect_pixels, _evaluate_pixels)}
