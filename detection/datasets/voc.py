"""PASCAL VOC's test set of 2012 (Everingham et al.): images without public annotations, and files for its server."""

from collections.abc import Sequence
from pathlib import Path

from mmdet.datasets import VOCDataset
from mmdet.registry import DATASETS, METRICS
from mmengine.evaluator import BaseMetric

from internimage.images import upright_size

__all__ = ["VOCResultFiles", "VOCTestDataset"]


@DATASETS.register_module()
class VOCTestDataset(VOCDataset):
    """`VOCDataset` in which images without an annotation file have no objects."""

    def parse_data_info(self, img_info: dict) -> dict:
        """The image's paths, size and, where they exist, annotations."""
        xml, image = Path(img_info["xml_path"]), Path(self.sub_data_root) / img_info["file_name"]
        if xml.exists():
            return super().parse_data_info(img_info)
        width, height = upright_size(image)
        return {
            "img_path": str(image),
            "img_id": img_info["img_id"],
            "xml_path": str(xml),
            "height": height,
            "width": width,
            "instances": [],
        }


@METRICS.register_module()
class VOCResultFiles(BaseMetric):
    """Writes `comp4_det_test_<class>.txt`: a line `image score xmin ymin xmax ymax` per detection, pixels from 1.

    Args:
        out_dir: folder for the files; created if it does not exist.
        collect_device, prefix: as in mmengine.
    """

    default_prefix = "voc_files"

    def __init__(self, out_dir: str, collect_device: str = "cpu", prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out_dir = Path(out_dir)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep each image's detections."""
        for sample in data_samples:
            found = sample["pred_instances"]
            self.results.append((sample["img_id"], *(found[key].tolist() for key in ("labels", "scores", "bboxes"))))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Write the files; returns the number of detections."""
        classes = self.dataset_meta["classes"]
        lines: list[list[str]] = [[] for _ in classes]
        for image, labels, scores, boxes in results:
            for label, score, box in zip(labels, scores, boxes):
                corners = " ".join(f"{coordinate + 1:.2f}" for coordinate in box)
                lines[label].append(f"{image} {score:.6f} {corners}\n")
        self.out_dir.mkdir(parents=True, exist_ok=True)
        for name, of_class in zip(classes, lines):
            (self.out_dir / f"comp4_det_test_{name}.txt").write_text("".join(of_class))
        return {"detections": float(sum(map(len, lines)))}
