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
from torch.utils.data import Dataset

from ..images import read_image
from ..report import Part, Tile, curves, evaluation, write_report
from ..results import DetectionResult, Result, SegmentationResult

__all__ = ["ReportHook"]

_SCORE, _IOU = 0.3, 0.5  # lowest ones of an object in pictures and in the confusion matrix
_PICTURES = 5
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
        self._write(runner, "report", f"validation, {done}", dataset, loop.iter)

    def after_test(self, runner: Runner) -> None:
        """Write the test."""
        self._write(runner, "report_test", "test", runner.test_dataloader.dataset, 0)

    def _write(self, runner: Runner, name: str, what: str, dataset: Dataset | None, step: int) -> None:
        rows = collect_results(self._rows, len(dataset), "cpu") if dataset else []
        if not is_main_process():
            return

        def parts() -> Iterator[Part]:
            if name == "report":
                yield _curves(runner)
            if rows and all(rows):
                yield from self._evaluate(rows, dataset, what)

        def show(title: str, pixels: np.ndarray) -> None:
            for backend in runner.visualizer._vis_backends.values():
                if not isinstance(backend, LocalVisBackend):  # which would write the file a second time
                    backend.add_image(title, pixels, step)

        write_report(Path(runner.work_dir, name), parts, runner.logger.info, show)


def _curves(runner: Runner) -> Part:
    """The losses and metrics of all starts of this run by iteration, from mmengine's logs."""
    per_epoch = len(runner.train_dataloader) if isinstance(runner.train_loop, EpochBasedTrainLoop) else 1
    records: dict[int, dict[str, float]] = {}
    metrics: dict[str, str] = {}
    for path in sorted(Path(runner.work_dir).glob("*/vis_data/scalars.json")):
        for record in map(json.loads, path.read_text().splitlines()):
            trains = "iter" in record
            step = record["step"] * (1 if trains else per_epoch)
            values = {key: record[key] for key in record.keys() - {"step", "iter", "epoch", "time", "data_time"}}
            if not trains:
                metrics |= {key: key for key in sorted(values) if not key.endswith(("_75", "_s", "_m", "_l"))}
            records.setdefault(step, {"iteration": step}).update(values)
    ordered = [records[step] for step in sorted(records) if step <= runner.iter]
    return curves(ordered, "iteration", {"training loss": {"loss": "sum of all losses"}, "validation": metrics})


def _tiles(pairs: Sequence[tuple[Result, Result]]) -> list[Tile]:
    """A row of true and a row of predicted results."""
    rows = zip(("truth", "prediction"), zip(*pairs))
    return [(result.plot(), f"{word} {Path(result.source).name}", None) for word, row in rows for result in row]


def _collect_objects(sample: object, pictured: bool) -> dict:
    found = sample.pred_instances
    row = {key: found[key].cpu().numpy() for key in ("bboxes", "scores", "labels")} | {"path": sample.img_path}
    if pictured and "masks" in found:
        masks = found.masks[found.scores >= _SCORE].cpu().numpy()
        row["masks"] = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    return row


def _coco(images: list[dict], classes: int, annotations: list[dict]) -> COCO:
    """COCO's index of annotations with `box`, corners."""
    for number, item in enumerate(annotations, 1):
        x1, y1, x2, y2 = map(float, item["box"])
        item |= {"id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    coco = COCO()
    coco.dataset = {"images": images, "categories": [{"id": k} for k in range(classes)], "annotations": annotations}
    coco.createIndex()
    return coco


def _precision(truth: COCO, found: COCO) -> np.ndarray:
    """Precision `(10, 101, K)` at IoU 0.5, 0.55, ... 0.95; NaN for classes without objects."""
    coco = COCOeval(truth, found, "bbox")
    coco.params.areaRng, coco.params.areaRngLbl, coco.params.maxDets = [[0, 1e10]], ["all"], [100]
    coco.evaluate()
    coco.accumulate()
    precision = coco.eval["precision"][..., 0, 0]
    return np.where(precision < 0, np.nan, precision)


def _pairs(truths: list[dict], found: list[dict], none: int) -> list[tuple[int, int]]:
    """True and predicted label of every object of an image; `none` where only one side has it."""
    true, labels = (np.array([item["category_id"] for item in items], int) for items in (truths, found))
    boxes = [np.reshape([item["bbox"] for item in items], (-1, 4)) for items in (found, truths)]
    ious = np.reshape(coco_mask.iou(*boxes, [0] * len(truths)), (len(found), len(truths)))
    near = ious >= _IOU
    # Of several objects near enough, one of the same class.
    of, to = linear_sum_assignment(near * (ious + np.equal.outer(labels, true)), maximize=True)
    of, to = of[near[of, to]], to[near[of, to]]
    missed, invented = np.delete(true, to), np.delete(labels, of)
    return [*zip(true[to], labels[of]), *((k, none) for k in missed), *((none, k) for k in invented)]


def _evaluate_objects(rows: list[dict], dataset: Dataset, what: str) -> Iterator[Part]:
    names, images, truths, found = list(dataset.metainfo["classes"]), [], [], []
    for number, row in enumerate(rows):
        info = dataset.get_data_info(number)
        images.append({"id": number, "height": info.get("height"), "width": info.get("width")})
        for item in info["instances"]:
            entry = {"image_id": number, "category_id": item["bbox_label"], "box": item["bbox"]}
            truths.append({**entry, "iscrowd": int(item["ignore_flag"]), "segmentation": item.get("mask")})
        for box, score, label in zip(*(row[key].tolist() for key in ("bboxes", "scores", "labels"))):
            found.append({"image_id": number, "category_id": label, "box": box, "score": score, "iscrowd": 0})
    with contextlib.redirect_stdout(io.StringIO()):
        true, found = (_coco(images, len(names), items) for items in (truths, found))
        precision = _precision(true, found)

    def result(path: str, items: list[dict], masks: list[np.ndarray] | None) -> DetectionResult:
        boxes = np.reshape([item["box"] for item in items], (-1, 4))
        scores, labels = np.array([(item.get("score", np.nan), item["category_id"]) for item in items]).reshape(-1, 2).T
        of_class = [names[item["category_id"]] for item in items]
        return DetectionResult(np.asarray(read_image(path)), path, boxes, scores, labels.astype(int), of_class, masks)

    pairs, pictures = [], []
    for number, row in enumerate(rows):
        own = [item for item in true.imgToAnns[number] if not item["iscrowd"]]
        items = [item for item in found.imgToAnns[number] if item["score"] >= _SCORE]
        pairs += _pairs(own, items, len(names))
        if number < _PICTURES:
            masks = [coco_mask.decode(mask).astype(bool) for mask in row["masks"]] if "masks" in row else None
            drawn = masks is not None and all(item["segmentation"] for item in own)
            own_masks = [true.annToMask(item).astype(bool) for item in own] if drawn else None
            pictures.append((result(row["path"], own, own_masks), result(row["path"], items, masks)))
    return evaluation(
        *(what, "objects", names, np.insert(np.reshape(pairs, (-1, 2)), 2, 1, 1)[:, [0, 1, 2, 2]]),
        *(_tiles(pictures), len(pictures)),
        scores={"AP": 100 * precision.mean((0, 1)), "AP50": 100 * precision[0].mean(0)},
        precision=precision[0],
        note=f"IoU of at least {_IOU}; matrix and pictures: score of at least {_SCORE}",
    )


def _collect_pixels(sample: object, pictured: bool) -> dict:
    predicted = sample.pred_sem_seg.data[0].long()
    truth = sample.gt_sem_seg.data[0].to(predicted)
    # Test-time augmentation keeps labels only. Not all rows at once, which would double the memory.
    logits = sample.seg_logits.data if "seg_logits" in sample else torch.zeros_like(predicted[None])
    confidence = torch.cat([rows.float().softmax(0).amax(0) for rows in logits.split(64, 1)])
    level = (confidence**4 * (_BINS - 1)).round().long()  # most are near 1: a power spreads them over the bins
    units = torch.unique((truth << 32) + (predicted << 16) + level, return_counts=True)
    maps = [labels.cpu().numpy().astype(np.int16) for labels in (truth, predicted)] if pictured else None
    return {"units": torch.stack(units).cpu().numpy(), "path": sample.img_path, "maps": maps}


def _evaluate_pixels(rows: list[dict], dataset: Dataset, what: str) -> Iterator[Part]:
    names, palette = list(dataset.metainfo["classes"]), dataset.metainfo.get("palette") or ()
    codes, counts = np.concatenate([row["units"] for row in rows], 1)
    codes, places = np.unique(codes, return_inverse=True)
    parts = codes >> 32, np.minimum(codes >> 16 & 0xFFFF, len(names)), codes & 0xFFFF, np.bincount(places, counts)
    units = np.column_stack(parts)[codes >> 32 < len(names)]  # 255 is no class
    pictures = []
    for row in rows[:_PICTURES]:
        parts = np.asarray(read_image(row["path"])), row["path"]
        pictures.append([SegmentationResult(*parts, labels, names, palette) for labels in row["maps"]])
    return evaluation(what, "pixels", names, units, _tiles(pictures), len(pictures))


_TASKS = {
    "detection": (_collect_objects, _evaluate_objects),
    "segmentation": (_collect_pixels, _evaluate_pixels),
    "3D detection": (lambda *_: {}, None),  # curves alone: nuScenes' devkit prints its own tables
}
