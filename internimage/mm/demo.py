"""`image_demo.py`: run a model on one image and draw the result."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from torch import nn

from ..checkpoint import extract_state_dict, load_exact, load_file
from ..errors import CheckpointError, UserError, exit_on_user_error
from ..zoo import local_checkpoint
from .checks import read_config
from .runner import Task

__all__ = ["draw", "image_demo", "load_model"]


def _classes_and_colors(config: Config, content: object) -> dict:
    """Class names and palette: those in the checkpoint, else those of the configuration's test data."""
    dataset = config.test_dataloader.dataset
    meta = dict(DATASETS.build({**dataset, "lazy_init": True}).metainfo)
    saved = content.get("meta") or {} if isinstance(content, dict) else {}
    named = saved.get("dataset_meta") or {key: saved[key] for key in ("CLASSES", "PALETTE") if saved.get(key)}
    meta |= {key.lower(): value for key, value in named.items()}
    meta.setdefault("palette", "random")
    return meta


def load_model(config: Config, checkpoint: str, device: str | torch.device = "cpu") -> nn.Module:
    """Build a model for mmdet's and mmseg's inference functions, with every weight from the checkpoint.

    Args:
        config: the model's configuration.
        checkpoint: path or URL; any layout.
        device: to run on.

    Raises:
        UserError: no such checkpoint.
        CheckpointError: it does not fit.
    """
    init_default_scope(config.get("default_scope", "mmengine"))
    config.model.backbone.pop("init_cfg", None)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    content = load_file(local_checkpoint(checkpoint))
    try:
        load_exact(model, extract_state_dict(content))
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    model.cfg = config
    model.dataset_meta = _classes_and_colors(config, content)
    return model.to(device).eval()


def draw(model: nn.Module, image: np.ndarray, path: Path, task: Task, score_thr: float = 0.3) -> object:
    """Run a loaded model on an image `(H, W, 3)`, BGR uint8; draw the result to `path` and return it."""
    sample = task.infer(model, image)
    visualizer = VISUALIZERS.build({**model.cfg.visualizer, "vis_backends": None})
    visualizer.dataset_meta = model.dataset_meta
    options = {"pred_score_thr": score_thr} if task.exact_classes else {"with_labels": False}
    visualizer.add_datasample("result", image[..., ::-1], sample, draw_gt=False, out_file=str(path), **options)
    return sample


@exit_on_user_error
def image_demo(task: Task, argv: Sequence[str] | None = None) -> None:
    """`image_demo.py IMAGE CONFIG CHECKPOINT`: write a picture of the result."""
    parser = argparse.ArgumentParser(description=f"Run a {task.name} model on an image and draw the result.")
    parser.add_argument("image", help="image file")
    parser.add_argument("config", help="configuration file")
    parser.add_argument("checkpoint", help="path or URL of the weights")
    parser.add_argument("--out", type=Path, help="picture to write; defaults to NAME_OF_IMAGE_result.jpg")
    parser.add_argument("--score-thr", type=float, default=0.3, help="draw detections with at least this score")
    parser.add_argument("--device", help="defaults to the GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="settings to change")
    args = parser.parse_args(argv)
    if not Path(args.image).is_file():
        raise UserError(f"no image at {args.image}")
    image = mmcv.imread(args.image)
    if image is None:
        raise UserError(f"{args.image} is not a readable image")
    config = read_config(args.config, args.cfg_options)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out = args.out or Path(f"{Path(args.image).stem}_result.jpg")
    out.parent.mkdir(parents=True, exist_ok=True)
    sample = draw(load_model(config, args.checkpoint, device), image, out, task, args.score_thr)
    print(f"{args.image}: {task.summary(sample, args.score_thr)}; drawn to {out}")
