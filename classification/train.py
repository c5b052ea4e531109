"""Train, evaluate or time an InternImage classifier.

    python classification/train.py --cfg classification/configs/internimage_t_1k_224.yaml --data-path data/imagenet
    python classification/train.py --cfg F.yaml --data-path DIR --eval --resume CHECKPOINT
    python classification/train.py --cfg F.yaml --data-path DIR --throughput

Several processes: `dist_train.sh` (torchrun) and `slurm_train.sh` next to this file. See docs/classification.md.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from yacs.config import CfgNode

from classification.config import amp_dtype, get_config, parse_args
from classification.data import build_loaders, explained_worker_death
from classification.models import build_model
from classification.trainer import distributed, resume
from classification.trainer.acceleration import place_model, set_tf32
from classification.trainer.engine import Trainer, seed_everything
from classification.trainer.evaluation import evaluate_all, throughput
from classification.trainer.fsdp import FullyShard
from classification.trainer.predictions import Predictions
from classification.trainer.strategy import Strategy
from classification.trainer.tracking import Tracker, prepare_folder, write_config
from internimage.errors import UserError, exit_on_user_error
from internimage.peers import Peers
from internimage.preemption import StopRequest, close_process_group, leave

BuildStrategy = Callable[[CfgNode, distributed.World], Strategy]


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    config = get_config(parse_args(argv))
    world = distributed.start(config.LAUNCHER, config.LOCAL_RANK, cpu_tensors=config.TRAIN.CPU_OFFLOAD)
    run(config, world, build_strategy)


def run(config: CfgNode, world: distributed.World, build_strategy: BuildStrategy) -> None:
    """Train, evaluate or time as configured; exit with code 75 if stopped by a signal."""
    set_tf32(world.device, config.TF32)
    seed_everything(world.device, config.SEED)
    finished = True
    with Peers(), explained_worker_death("--opts DATA.NUM_WORKERS"):
        if config.EVAL_MODE:
            run_evaluation(config, world)
        elif config.THROUGHPUT_MODE:
            run_throughput(config, world)
        else:
            with StopRequest() as stop:
                finished = run_training(config, world, build_strategy, stop)
        if not finished:
            leave()
        close_process_group()  # after an error the process just exits


def build_strategy(config: CfgNode, world: distributed.World) -> Strategy:
    """How `TRAIN.SHARD` spreads the model over the processes."""
    dtype = amp_dtype(config, world.device)
    if config.TRAIN.SHARD == "fsdp":
        options = {"cpu_offload": config.TRAIN.CPU_OFFLOAD, "folders": config.SHARDED_CHECKPOINT}
        return FullyShard(world, dtype, **options)
    return Strategy(world, dtype, config.TRAIN.FP16_GRADIENTS)


def run_training(config: CfgNode, world: distributed.World, build_strategy: BuildStrategy, stop: StopRequest) -> bool:
    """Train from a checkpoint of this run, else from --resume, else from --pretrained, else from random weights.

    Returns whether the training is finished; `stop` may end it earlier.
    """
    folder = Path(config.OUTPUT)
    distributed.run_on_main(world, lambda: prepare_folder(folder))
    tracker = Tracker(folder, world, config.LOGGER)
    loaders = build_loaders(config)
    predictions = Predictions(loaders) if config.REPORT else None
    loaders.start_workers()
    config = config.clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = loaders.num_classes  # as the run's config.yaml and checkpoints must say
    config.freeze()
    strategy, model = build_strategy(config, world), build_model(config, loaders.num_classes)
    if config.TRAIN.SHARD != "fsdp":  # which moves one block after the other
        place_model(model, world.device, config.COMPILE)
    tracker.log(
        f"{config.MODEL.NAME}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
        f"{loaders.num_classes} classes, {world.size} x {world.device.type}, output {folder}"
    )
    found = resume.find_latest(world, folder, tracker.log) if config.TRAIN.AUTO_RESUME else None
    if config.MODEL.RESUME:
        if found is None:
            found = resume.locate(world, config.MODEL.RESUME)
        else:
            tracker.log(f"not resuming from {config.MODEL.RESUME}: this run has newer checkpoints of its own")
    elif found is None and config.MODEL.PRETRAINED:
        weights = resume.locate(world, config.MODEL.PRETRAINED)
        resume.initialise(model, weights, tracker.log, rand_init_head=config.TRAIN.RAND_INIT_FT_HEAD)
    trainer = Trainer(config, strategy, model, loaders, stop, predictions)
    if found is not None:
        resume.restore(trainer.state, found, tracker.log)
        tracker.log(f"resumed from {found}; the next epoch is {trainer.state.epoch + 1}")
    if trainer.state.epoch + 1 < config.TRAIN.EPOCHS:
        for line in trainer.describe_schedule():
            tracker.log(line)
    distributed.run_on_main(world, lambda: write_config(folder, config.dump()))  # not of a run that was refused above
    finished = trainer.fit(tracker)
    tracker.close()
    return finished


def run_evaluation(config: CfgNode, world: distributed.World) -> dict[str, float]:
    """Evaluate the weights of --resume or --pretrained, and the averaged weights if the file has them.

    Returns the figures of the former, as `classification.trainer.evaluation.evaluate` gives them.
    """
    weights = config.MODEL.RESUME or config.MODEL.PRETRAINED
    if not weights:
        raise UserError("--eval needs a checkpoint; pass --resume FILE")
    weights = resume.locate(world, weights)
    loaders = build_loaders(config)
    models = []
    for averaged in (False, True):
        model = place_model(build_model(config, loaders.num_classes), world.device, config.COMPILE)
        models.append(model if resume.load_for_evaluation(model, weights, ema=averaged) else None)
    log, dtype = Tracker(None, world).log, amp_dtype(config, world.device)
    predictions = Predictions(loaders) if config.PREDICTIONS else None
    keep = [predictions.watch, predictions.keep] if predictions else []
    figures, _ = evaluate_all(*models, loaders, world, dtype, log, *keep)
    if predictions:
        predictions.write(Path(config.PREDICTIONS), world, log)
    return figures


def run_throughput(config: CfgNode, world: distributed.World) -> None:
    """Time the forward pass on one batch of the validation set."""
    loaders = build_loaders(config)
    model = place_model(build_model(config, loaders.num_classes), world.device, config.COMPILE)
    batch = next(iter(loaders.val))
    rate = throughput(model, batch, world, dtype=amp_dtype(config, world.device))
    text = f"throughput: {rate:.1f} images/s with batch size {len(batch[0])} on {world.device}"
    Tracker(None, world).log(text + (f", per process of {world.size}" if world.size > 1 else ""))


if __name__ == "__main__":
    main()
