"""Training a classifier: one step, one epoch, one run.

Follows the original project's recipe (AdamW, warm-up and cosine by updates, mixup with soft targets, EMA beside the
plain model). Every epoch starts from random states that depend on (seed, epoch, rank) only, so a run that was killed
and resumed ends with the same weights as one that was left alone.
"""

import math
import random
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from yacs.config import CfgNode

from classification.data import Loaders
from internimage.errors import UserError

from .acceleration import compile_model
from .distributed import World, wrap_model
from .evaluation import evaluate_all, forward_precision, to_device
from .optimizer import build_optimizer, build_scheduler, scaled_learning_rates
from .resume import RunState, save
from .tracking import EpochMeter, Tracker, duration

__all__ = ["Trainer", "seed_everything"]


def seed_everything(seed: int, epoch: int = 0, rank: int = 0) -> None:
    """Seed Python, NumPy and torch with a number made from all three arguments."""
    mixed = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 -- timm's mixup draws from the global generator
    torch.manual_seed(mixed)


class Trainer:
    """One training run: builds optimizer, schedule, scaler, EMA and the distributed wrapper around a model.

    Resume `state` (see `resume.restore`) before calling `fit`.

    Args:
        config: the frozen configuration.
        world: this process among the others.
        model: a classifier, on `world.device`, with the weights to start from.
        loaders: from `build_loaders`.
        dtype: of autocast; None for fp32.
    """

    def __init__(
        self, config: CfgNode, world: World, model: nn.Module, loaders: Loaders, dtype: torch.dtype | None
    ) -> None:
        self.config, self.world, self.loaders, self.dtype = config, world, loaders, dtype
        self.folder = Path(config.OUTPUT)
        self.steps = len(loaders.train)
        self.accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
        self.updates = -(-self.steps // self.accumulation)  # per epoch; the last may take fewer steps
        model.freeze_levels(config.TRAIN.OPTIMIZER.FREEZE_BACKBONE or 0)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        rates = scaled_learning_rates(config, world.size)
        optimizer = build_optimizer(config, model, rates, world.size)
        self.state = RunState(
            model=model,
            optimizer=optimizer,
            epoch=config.TRAIN.START_EPOCH - 1,
            scheduler=build_scheduler(config, optimizer, rates, self.updates),
            scaler=torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16),
            ema=ModelEmaV3(model, decay=config.TRAIN.EMA.DECAY) if config.TRAIN.EMA.ENABLE else None,
        )
        if self.state.ema is not None:  # a copy of the model, and copies are not compiled
            compile_model(self.state.ema.module, config.COMPILE)
        self.parallel = model
        if world.size > 1:
            self.parallel = wrap_model(world, model)
        # Mixup makes the targets soft, with the smoothing in them.
        smoothing = 0.0 if loaders.mixup is not None else config.MODEL.LABEL_SMOOTHING
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def fit(self, tracker: Tracker) -> None:
        """Train to the last epoch, with evaluation, checkpoints and reports as configured."""
        started, state, config = time.perf_counter(), self.state, self.config
        first, last = state.epoch + 1, config.TRAIN.EPOCHS - 1
        tracker.begin(first, first * self.updates)
        for epoch in range(first, config.TRAIN.EPOCHS):
            seed_everything(config.SEED, epoch, self.world.rank)
            self.loaders.set_epoch(epoch)
            record = {"epoch": epoch} | self.train_one_epoch(epoch, tracker)
            tracker.log(
                f"epoch {epoch}/{config.TRAIN.EPOCHS} training: mean loss {record['train_loss']:.4f} "
                f"({record['images_per_second']:.1f} images/s)"
            )
            if bad := list(self.loaders.train.bad_images):
                tracker.log(f"bad training images that this process replaced so far: {len(bad)}; the first: {bad[0]}")
            state.epoch = epoch
            best = best_ema = False
            if (epoch + 1) % config.EVAL_FREQ == 0 or epoch == last:
                figures, best, best_ema = self._evaluate(tracker)
                record |= figures
            # Before the checkpoint: a run killed in between repeats the epoch and replaces its record.
            tracker.epoch(record)
            tracker.scalars((epoch + 1) * self.updates, {f"epoch/{k}": v for k, v in record.items() if k != "epoch"})
            save(
                self.world,
                self.folder,
                state,
                config.dump(),
                numbered=(epoch + 1) % config.SAVE_FREQ == 0 or epoch == last,
                best=best,
                best_ema=best_ema,
                keep=max(2, config.SAVE_CKPT_NUM),  # with one alone, a damaged file would cost the whole run
            )
        trained = f"epochs {first} to {last}" if first <= last else "nothing left to do"
        tracker.log(f"finished ({trained}) in {duration(time.perf_counter() - started)}")
        best_line = f"best top-1 {state.max_accuracy:.2f}%" if state.max_accuracy >= 0 else "not evaluated"
        if state.ema is not None:
            best_line += f", of the averaged weights {state.max_accuracy_ema:.2f}%"
        tracker.log(f"{best_line}; checkpoints, log.txt, history.jsonl and TensorBoard files are in {self.folder}")

    def train_one_epoch(self, epoch: int, tracker: Tracker) -> dict[str, float]:
        """One pass over the training set. Returns `EpochMeter.summary` and the last learning rate."""
        config, state = self.config, self.state
        self.parallel.train()
        meter = EpochMeter(self.world, epoch, skips_overflow=state.scaler.is_enabled())
        label = f"epoch {epoch}/{config.TRAIN.EPOCHS}"
        for step, batch in enumerate(tracker.steps(self.loaders.train, total=self.steps, label=label)):
            inputs, target = to_device(batch, self.world.device)
            images = len(target)
            if self.loaders.mixup is not None:
                mixed, target = self.loaders.mixup(inputs[0], target)
                inputs = (mixed, *inputs[1:])
            self._step(epoch, step, inputs, target, images, meter)
            if (step + 1) % config.PRINT_FREQ == 0 or step + 1 == self.steps:
                self._report(epoch, step, label, meter, tracker)
        if self.world.size > 1:
            for model in [state.model] + ([state.ema.module] if state.ema is not None else []):
                distribute_bn(model, self.world.size, reduce=True)
        return meter.summary() | {"lr": self._learning_rate()}

    def _step(self, epoch: int, step: int, inputs: tuple, target: Tensor, images: int, meter: EpochMeter) -> None:
        """Forward and backward; at the end of an accumulation group also the update."""
        state = self.state
        group_start = step - step % self.accumulation
        group = min(self.accumulation, self.steps - group_start)
        if step == group_start:
            state.scheduler.step_update(epoch * self.updates + step // self.accumulation)
            state.optimizer.zero_grad(set_to_none=True)
        updates = step + 1 == group_start + group
        waits = not updates and self.world.size > 1
        with self.parallel.no_sync() if waits else nullcontext():
            with forward_precision(self.world.device, self.dtype):
                loss = self.criterion(self.parallel(*inputs).float(), target)
            state.scaler.scale(loss / group).backward()
        meter.add(loss, images)
        if not updates:
            return
        state.scaler.unscale_(state.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.TRAIN.CLIP_GRAD:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.TRAIN.CLIP_GRAD, norm)
        meter.add_norm(norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.model)

    def _report(self, epoch: int, step: int, label: str, meter: EpochMeter, tracker: Tracker) -> None:
        window = meter.flush() | {"lr": self._learning_rate()}
        elapsed = time.perf_counter() - meter.started
        remaining = (self.config.TRAIN.EPOCHS - epoch) * self.steps - (step + 1)
        left = duration(elapsed / (step + 1) * remaining)
        short = f"loss {window['loss']:.4f}, lr {window['lr']:.2e}, run ends in {left}"
        norm = f" grad norm {window['grad_norm']:.3f}" if "grad_norm" in window else ""  # none while accumulating
        tracker.note(
            f"{label} step {step + 1}/{self.steps} loss {window['loss']:.6f} lr {window['lr']:.3e}{norm} "
            f"{window['images_per_second']:.1f} images/s, {left} left",
            short,
        )
        tracker.scalars(
            epoch * self.updates + -(-(step + 1) // self.accumulation),
            {f"train/{name}": value for name, value in window.items()},
        )

    def _evaluate(self, tracker: Tracker) -> tuple[dict[str, float], bool, bool]:
        """Figures of the plain and the averaged model, and whether each is the best so far."""
        state = self.state
        label = f"epoch {state.epoch}/{self.config.TRAIN.EPOCHS}"

        def log(text: str) -> None:
            tracker.log(f"{label} {text}")

        averaged = state.ema.module if state.ema is not None else None
        plain, ema = evaluate_all(state.model, averaged, self.loaders, self.world, self.dtype, log)
        if not math.isfinite(plain["loss"]):
            raise UserError(
                f"the validation loss became {plain['loss']} after epoch {state.epoch}; nothing was saved since the "
                "last good checkpoint; start again with a lower TRAIN.BASE_LR"
            )
        figures = {"val_loss": plain["loss"], "top1": plain["top1"], "top5": plain["top5"]}
        best = plain["top1"] > state.max_accuracy
        state.max_accuracy = max(state.max_accuracy, plain["top1"])
        best_ema = False
        if ema is not None:
            figures |= {"val_loss_ema": ema["loss"], "top1_ema": ema["top1"], "top5_ema": ema["top5"]}
            best_ema = ema["top1"] > state.max_accuracy_ema
            state.max_accuracy_ema = max(state.max_accuracy_ema, ema["top1"])
        return figures, best, best_ema

    def _learning_rate(self) -> float:
        """The rate of the head: the largest one, where layer decay makes others smaller."""
        return max(group["lr"] for group in self.state.optimizer.param_groups)
