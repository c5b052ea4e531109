"""Training and testing on mmengine, shared by detection and segmentation.

The options are those of mmdet's and mmseg's own `train.py` and `test.py`. What differs: user errors are one line,
checkpoints are read by `internimage.checkpoint` (strictly for testing and resuming) and written so that no kill loses
them (`checkpoints`), and several processes also work without a GPU (gloo, and BN for SyncBN).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import init_dist
from torch import distributed

from ..errors import ArgumentParser, UserError, exit_on_user_error
from ..peers import Peers
from ..preemption import close_process_group, leave
from ..runlock import lock_run
from ..zoo import local_checkpoint
from .checked_runner import CheckedRunner, bare
from .checkpoints import find_checkpoints, on_main
from .checks import add_config, check_classes, check_data_files, explained, explained_empty, read_config
from .predictor import add_model_arguments, resolve_model
from .report import ReportHook
from .sharding import MODES, configure_sharding
from .tasks import DETECTION, SEGMENTATION, FuseHook, PicturesHook, ScheduleHook, Task, is_mmdet3d

__all__ = ["DETECTION", "SEGMENTATION", "CheckedRunner", "Task", "evaluate", "test", "train"]


# Configuration

# Options of train.py for settings.
_SETTINGS = {
    "--batch-size": (int, "train_dataloader.batch_size"),
    "--lr": (float, "optim_wrapper.optimizer.lr"),
    "--seed": (int, "randomness.seed"),
    "--pretrained": (str, "load_from"),
}


def _set_epochs(config: Config, epochs: int) -> None:
    """Train for a number of epochs, and scale the schedule of the learning rate. Raises `UserError`."""
    if "max_epochs" not in config.train_cfg:
        raise UserError("--epochs: this training counts steps; use --opts train_cfg.max_iters=N")
    scale = epochs / config.train_cfg.max_epochs
    for schedule in config.get("param_scheduler", []):
        for key in {"begin", "end", "T_max", "milestones"} & schedule.keys() if schedule.get("by_epoch", True) else ():
            value = schedule[key]
            schedule[key] = [round(v * scale) for v in value] if isinstance(value, list) else round(value * scale)
    config.train_cfg.max_epochs = epochs


def _arguments(description: str) -> argparse.ArgumentParser:
    parser = ArgumentParser(description=description)
    help = "folder for logs and checkpoints; defaults to work_dirs/NAME_OF_CONFIG"
    parser.add_argument("--output", "--work-dir", dest="work_dir", metavar="DIR", help=help)
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    return parser


def _start(config: Config, args: argparse.Namespace) -> None:
    """Set the launcher and the folder of the command line."""
    config.launcher = args.launcher
    config.work_dir = args.work_dir or config.get("work_dir") or f"./work_dirs/{Path(args.config).stem}"


def _join(config: Config) -> Peers:
    """Join the processes that the launcher started; enter the result around what they do together."""
    if config.launcher == "pytorch" and not torch.cuda.is_available():
        distributed.init_process_group("gloo")  # mmengine needs a GPU
    elif config.launcher != "none":
        init_dist(config.launcher, **config.get("env_cfg", {}).get("dist_cfg", {}))
    return Peers()


def _build(config: Config, task: Task, phases: Sequence[str]) -> CheckedRunner:
    """The runner, with the data of `phases` built and compared with the model."""
    check_data_files(config, tuple(phases))
    runner = CheckedRunner.from_cfg(config)
    if "train" in phases:
        on_main(lambda: lock_run(runner.work_dir))
        runner.register_hook(ScheduleHook())
    if config.get("report", True) and ("train" in phases or not is_mmdet3d(config)):
        runner.register_hook(ReportHook("3D detection" if is_mmdet3d(config) else task.name))
    for phase in phases:
        if config.get(f"{phase}_dataloader"):
            with explained_empty(phase):
                dataset = getattr(runner, f"{phase}_dataloader").dataset
            check_classes(bare(runner.model), dataset, phase, exact=task.exact_classes)
    return runner


# Commands


@exit_on_user_error
def train(task: Task, argv: Sequence[str] | None = None) -> None:
    """`train.py`: train from the configuration's pretrained weights, from `load_from`, or from a checkpoint."""
    parser = _arguments(f"Train a {task.name} model.")
    add_config(parser)
    for option, (kind, key) in _SETTINGS.items():
        parser.add_argument(option, type=kind, dest=key, help=f"the same as --opts {key}=VALUE")
    parser.add_argument("--epochs", type=int, help="length of the training; its schedule scales with it")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision (needs a GPU)")
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the total batch size"
    )
    parser.add_argument("--deterministic", action="store_true", help="use deterministic algorithms of PyTorch")
    parser.add_argument("--shard", choices=MODES, help="share the optimizer's state (zero) or the whole model (fsdp)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from this checkpoint; without a name, and by default, from the latest one in the work folder",
    )
    args = parser.parse_args(argv)
    given = {key: vars(args)[key] for _, key in _SETTINGS.values() if vars(args)[key] is not None}
    config = read_config(args.config, (args.cfg_options or {}) | given)
    if args.epochs is not None:
        _set_epochs(config, args.epochs)
    _start(config, args)
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a GPU; omit it on the CPU")
        config.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    if args.deterministic:
        config.merge_from_dict({"randomness.deterministic": True})
    configure_sharding(config, args.shard)
    if args.auto_scale_lr:
        if not config.get("auto_scale_lr", {}).get("base_batch_size"):
            raise UserError(
                "--auto-scale-lr needs the total batch size that the learning rate belongs to; add "
                "--cfg-options auto_scale_lr.base_batch_size=N"
            )
        config.auto_scale_lr.enable = True
    with _join(config), explained():
        if not args.resume and not config.get("resume") and on_main(lambda: bool(find_checkpoints(config))):
            args.resume = "auto"  # instead of starting anew over the files of the earlier run
        if args.resume:
            config.resume = True
            config.load_from = None if args.resume == "auto" else str(local_checkpoint(args.resume))
        if config.get("load_from"):
            config.load_from = str(local_checkpoint(config.load_from))
        if config.get("load_from") or (config.get("resume") and find_checkpoints(config)):
            config.model.backbone.pop("init_cfg", None)  # it would be downloaded and then overwritten
        runner = _build(config, task, ("train", "val"))
        runner.train()
        if runner.stopped:
            leave()
        close_process_group()


@exit_on_user_error
def test(task: Task, argv: Sequence[str] | None = None) -> None:
    """`test.py`: evaluate a checkpoint, of this or of the original project, on the configuration's test data."""
    evaluate(task, argv)


def evaluate(task: Task, argv: Sequence[str] | None = None, settings: Mapping[str, str] | None = None) -> dict:
    """`test.py` with `settings` added to its --opts; return the metrics. Raises `UserError`."""
    parser = _arguments(f"Evaluate a {task.name} model.")
    add_model_arguments(parser)
    parser.add_argument("--predictions", "--out", metavar="PATH", help=task.out_help)
    parser.add_argument("--show-dir", help="folder for pictures of the predictions")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: several scales and mirror images")
    if task is DETECTION:  # label maps have no scores
        help = "lowest score in the pictures of --show-dir; default 0.3"
        parser.add_argument("--threshold", "--show-score-thr", type=float, default=0.3, metavar="SCORE", help=help)
    help = "write --predictions in the format of a benchmark's server (COCO JSON, label maps) and evaluate nothing"
    parser.add_argument("--format-only", action="store_true", help=help)
    parser.add_argument("--fuse-conv-bn", action="store_true", help="fold BatchNorm into convolutions: a little faster")
    args = parser.parse_args(argv)
    args.cfg_options = (args.cfg_options or {}) | (settings or {})
    config, checkpoint = resolve_model(args)
    _start(config, args)
    config.load_from = str(local_checkpoint(checkpoint))
    config.resume = False
    config.shard = "none"
    config.model.backbone.pop("init_cfg", None)
    if args.tta:
        if config.model.get("roi_head", {}).get("mask_head"):  # None in detectors of boxes
            raise UserError("mmdet cannot merge the masks of augmented images; omit --tta")
        if task is DETECTION:
            task.add_tta(config)
        if "tta_model" not in config or "tta_pipeline" not in config:
            raise UserError(f"{args.config} has no tta_model and tta_pipeline; omit --tta")
        config.model = ConfigDict(**config.tta_model, module=config.model)
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
    if args.format_only:
        if not args.predictions:
            raise UserError("--format-only needs --predictions PATH, where to write")
        config.report = False
        found = config.test_evaluator
        for metric in found if isinstance(found, list) else [found]:
            metric.update({"format_only": True, task.format_key: args.predictions})
    with _join(config), explained():
        runner = _build(config, task, ("test",))
        if args.predictions and not args.format_only:
            task.save_predictions(runner, args.predictions)
        if args.fuse_conv_bn:
            runner.register_hook(FuseHook())
        if args.show_dir:
            options = {"pred_score_thr": args.threshold} if task is DETECTION else {}
            runner.register_hook(PicturesHook(args.show_dir, **options))
        metrics = runner.test()
        close_process_group()
    return metrics
