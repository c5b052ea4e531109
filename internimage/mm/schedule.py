"""What a training of detection or segmentation says about its schedule before it starts."""

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

__all__ = ["ScheduleHook"]


class ScheduleHook(Hook):
    """Log the learning rate that the optimizer gets and the number of updates, and a warning if these are few."""

    def before_train(self, runner: Runner) -> None:
        """Log it, unless a resumed training is finished already."""
        loop, config = runner.train_loop, runner.cfg
        if loop.iter >= loop.max_iters:
            return
        steps = config.optim_wrapper.get("accumulative_counts", 1)
        images = config.train_dataloader.get("batch_size", 1) * runner.world_size * steps
        rate = max(group.get("initial_lr", group["lr"]) for group in runner.optim_wrapper.param_groups)
        epoch, total = loop.max_iters // loop.max_epochs, loop.max_iters // steps
        rising = [schedule for schedule in config.get("param_scheduler", ()) if schedule["type"] == "LinearLR"]
        ends = [schedule.get("end", 0) * (epoch if schedule.get("by_epoch", True) else 1) for schedule in rising]
        warmup = max(ends, default=0) // steps
        runner.logger.info(
            f"learning rate {rate:.3g} (optim_wrapper.optimizer.lr {config.optim_wrapper.optimizer.lr:.3g}), "
            f"{images} images per update; "
            + (f"{epoch / steps:g} updates per epoch, " if isinstance(loop, EpochBasedTrainLoop) else "")
            + f"{total} in all, warm-up of {warmup}"
        )
        if total < 200 or 3 * warmup > total:
            runner.logger.warning(
                "too short to learn much: train longer, or lower the batch size or the warm-up of param_scheduler"
            )
