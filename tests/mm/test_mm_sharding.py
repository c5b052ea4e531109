"""`--shard`: two processes that share a model train, stop and go on like two that each have all of it."""

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_coco
import tiny_scenes
import torch
import torch._dynamo  # DTensor imports it: once here, before the forks
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from ports import free_port
from processes import in_two_processes
from small_detectors import small
from torch import distributed
from torch.distributed.fsdp import FSDPModule

from internimage import preemption
from internimage.checkpoint import load_file
from internimage.errors import UserError
from internimage.mm.runner import DETECTION, SEGMENTATION, train
from internimage.mm.runner import test as evaluate
from internimage.mm.sharding import configure_sharding, shard_fully
from internimage.preemption import EXIT_CODE
from internimage.seeding import seed_generators

# Random paths and order, blocks that are recomputed, clipped gradients, and the form of the optimizer that GPUs use.
OPTIONS = [
    *("train_dataloader.batch_size=1", "train_dataloader.sampler.shuffle=True", "default_hooks.logger.interval=1"),
    *("model.backbone.with_cp=True", "model.backbone.drop_path_rate=0.3", "val_cfg=None", "val_dataloader=None"),
    *("val_evaluator=None", "optim_wrapper.optimizer.foreach=True", "optim_wrapper.clip_grad.max_norm=1.0"),
    "find_unused_parameters=True",
]
STOP = """
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class Stop(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if "STOP" in os.environ and runner.iter == 1 and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


custom_hooks = [dict(type="Stop")]
"""
TASKS = {
    "detection": SimpleNamespace(
        task=DETECTION,
        tiny=tiny_coco,
        first="epoch_1.pth",
        last="epoch_2.pth",
        # All proposals: which are the best 50 of them depends on rounding.
        options=["model.train_cfg.rpn_proposal.max_per_img=1000", "model.train_cfg.rcnn.sampler.num=512"],
    ),
    "segmentation": SimpleNamespace(
        task=SEGMENTATION,
        tiny=tiny_scenes,
        first="iter_2.pth",
        last="iter_4.pth",
        options=["train_cfg.max_iters=4", "default_hooks.checkpoint.interval=2"],
    ),
}


def start(case: SimpleNamespace, config: Path, run: str, *options: str) -> int:
    """Train; return the exit code."""
    command = [str(config), "--work-dir", str(config.parent / run), "--launcher", "pytorch", *options]
    try:
        train(case.task, [*command, "--cfg-options", *OPTIONS, *case.options])
    except SystemExit as stopped:
        return stopped.code
    return 0


def history(checkpoint: dict) -> list[float]:
    """Losses and gradient norms of all steps."""
    scalars = checkpoint["message_hub"]["log_scalars"]
    return [value for name in ("train/loss", "train/grad_norm") for value in scalars[name].data[0]]


def largest_difference(first: dict, second: dict) -> float:
    """Between tensors of the same names, relative to their norm."""
    assert list(first) == list(second)
    pairs = [(first[key].double(), second[key].double()) for key in first]
    return max(((one - other).norm() / one.norm().clamp_min(1e-12)).item() for one, other in pairs)


def equal(first: object, second: object) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize(("name", "mode"), [("detection", "fsdp"), ("segmentation", "zero")])
def test_processes_that_share_a_model_train_stop_and_go_on(name, mode, tmp_path, monkeypatch):
    case = TASKS[name]
    config = case.tiny.make_config(tmp_path, case.tiny.make_data(tmp_path / "data"))
    config.write_text(config.read_text() + STOP)
    monkeypatch.setattr(preemption, "_OTHERS_NEED", 0)
    runs = [
        ("whole", 0, ["none"]),
        ("shared", 0, [mode]),
        ("stopped", EXIT_CODE, [mode]),
        ("stopped", 0, [mode, "--resume"]),
    ]
    if mode == "zero":  # the checkpoint of another mode
        runs.append(("moved", 0, ["fsdp", "--resume", str(tmp_path / "whole" / case.first)]))
    ports = [free_port() for _ in runs]  # the last group's may still be in use

    def work() -> int:
        for (run, expected, options), port in zip(runs, ports):
            os.environ["MASTER_PORT"] = port
            os.environ.update({"STOP": ""} if expected else {})
            code = start(case, config, run, "--shard", *options)
            os.environ.pop("STOP", None)
            assert code == (0 if os.environ["RANK"] == "1" else expected)
        return 0

    assert in_two_processes(work) == [0, 0]
    saved = {run: load_file(tmp_path / run / case.last) for run, *_ in runs}
    whole, shared, stopped = (saved.pop(run) for run in ("whole", "shared", "stopped"))
    for other in [shared, *saved.values()]:
        assert history(other) == pytest.approx(history(whole), rel=1e-5)
        assert largest_difference(whole["state_dict"], other["state_dict"]) < 1e-5
        assert equal(whole["optimizer"]["param_groups"], other["optimizer"]["param_groups"])
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert equal(shared.get(part), stopped.get(part)), part
    assert len({group["lr"] for group in shared["optimizer"]["param_groups"]}) == 6  # stem, four levels, head
    if mode == "fsdp":
        evaluate(case.task, [str(config), str(tmp_path / "shared" / case.last), "--work-dir", str(tmp_path / "test")])


def test_the_gradients_of_a_composite_backbone_are_those_of_the_whole_model():
    init_default_scope("mmdet")
    model = MODELS.build(small("coco/dino_4scale_cbinternimage_h_objects365_coco_ss.py").model).train()
    data = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=3, num_items=[3, 2])

    def gradients() -> dict[str, torch.Tensor]:
        seed_generators(0)
        loss, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(data), True), mode="loss"))
        loss.backward()
        found = {
            name: p.grad.full_tensor() if isinstance(model, FSDPModule) else p.grad
            for name, p in model.named_parameters()
        }
        model.zero_grad()
        return found

    def work() -> int:
        distributed.init_process_group("gloo")
        whole = gradients()
        shard_fully(model)
        parts = [isinstance(module, FSDPModule) for module in model.modules()]
        return int(sum(parts) != 13 or largest_difference(whole, gradients()) > 1e-5)  # 2 x 6 blocks and the rest

    assert in_two_processes(work) == [0, 0]


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("fsdp", {"launcher": "none"}, "--shard fsdp needs several processes"),
        (None, {"shard": "fdsp"}, "shard must be one of none, zero, fsdp; got 'fdsp'"),
        ("fsdp", {"custom_hooks": [{"type": "EMAHook"}]}, "does not support EMAHook"),
        ("fsdp", {"model_wrapper_cfg": {"type": "MMFullyShardedDataParallel"}}, "model_wrapper_cfg"),
        ("zero", {"optim_wrapper.optimizer.type": "Lion8bit"}, "optimizer of torch.optim, got .* with Lion8bit"),
        ("zero", {"optim_wrapper.type": "ApexOptimWrapper"}, "got ApexOptimWrapper with AdamW"),
    ],
)
def test_what_cannot_be_shared_is_refused(mode, changes, message):
    config = Config({"launcher": "pytorch", "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW"}}})
    config.merge_from_dict(changes)
    with pytest.raises(UserError, match=message):
        configure_sharding(config, mode)
