"""The smallest mmengine run: one layer, sixteen numbers, a metric that rises with every validation."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

__all__ = ["toy_config"]


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("validations", torch.zeros(()))

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> object:
        loss = (self.layer(inputs.float()) - 3 * inputs).square().mean()
        if mode == "loss":
            self.validations += 1
            return {"loss": loss}
        return [self.validations.clone()]


@DATASETS.register_module()
class ToyData(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        return {"inputs": torch.tensor([index / 16])}


@METRICS.register_module()
class Steps(BaseMetric):
    """The number of training steps so far, under two names."""

    def process(self, data_batch: object, data_samples: list) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"steps": float(results[0]), "count": float(results[0])}


def toy_config(work_dir: Path, **checkpoint: object) -> Config:
    """A run of 5 steps that saves and validates after each, with options of the checkpoint hook."""
    loader = {
        "batch_size": 4,
        "num_workers": 0,
        "dataset": {"type": "ToyData"},
        "collate_fn": {"type": "default_collate"},
    }
    sampler = {"type": "InfiniteSampler", "shuffle": True}
    hook = {"type": "CheckpointHook", "by_epoch": False, "interval": 1, "max_keep_ckpts": 1}
    return Config(
        {
            "model": {"type": "ToyModel"},
            "work_dir": str(work_dir),
            "experiment_name": work_dir.name,
            "train_dataloader": {**loader, "sampler": sampler},
            "val_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 5, "val_interval": 1},
            "val_cfg": {},
            "val_evaluator": {"type": "Steps"},
            "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.1}},
            "param_scheduler": {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 5},
            "default_hooks": {"checkpoint": {**hook, "save_best": "steps", "rule": "greater", **checkpoint}},
            "default_scope": "mmengine",
            "log_level": "ERROR",
            "randomness": {"seed": 0},
        }
    )
