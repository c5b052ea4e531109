"""Train a classifier: one step, one epoch, one run.

Follows the original project's recipe (AdamW, warm-up and cosine schedule by updates, mixup with soft targets, EMA). The
random states of a step depend only on (seed, epoch, step, rank): a run that was stopped or killed and resumed ends with
the same weights as an uninterrupted run.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from timm.utils import distribute_bn
from torch import Tensor, nn
from yacs.config import CfgNode

from classification.data import Loaders
from internimage.checkpoint import save_atomic
from internimage.errors import CheckpointError, UserError
from internimage.files import remove
from internimage.preemption import StopRequest
from internimage.seeding import sample_seed, seed_generators

from .acceleration import compile_model
from .distributed import gather, run_on_main
from .evaluation import evaluate_all, forward_precision, to_device
from .optimizer import REFERENCE_BATCH, build_optimizer, build_scheduler, learning_rate_scale
from .predictions import Predictions
from .resume import RunState, save
from .strategy import Strategy
from .tracking import EpochMeter, Tracker, duration, read_history

__all__ = ["Trainer", "seed_everything"]


def seed_everything(device: torch.device, *numbers: int) -> None:
    """Seed Python, NumPy, torch and this process's GPU with a hash of `numbers`."""
    seed = sample_seed(*numbers)
    seed_generators(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Stopped(Exception):
    """The run was stopped by a signal and has been saved."""


class Trainer:
    """One training run: gives the model to the strategy, and builds the schedule.

    To resume, call `resume.restore` with `state` before `fit`.

    Args:
        config: the frozen configuration.
        strategy: how the model is spread over the processes; not yet prepared.
        model: a classifier, on the strategy's device, with initial weights.
        loaders: from `build_loaders`.
        stop: checked after every update and during evaluation.
        predictions: of the same loaders, for a report at the end of the run; None for none.
    """

    def __init__(
        self,
        config: CfgNode,
        strategy: Strategy,
        model: nn.Module,
        loaders: Loaders,
        stop: StopRequest | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        self.config, self.strategy, self.world, self.loaders = config, strategy, strategy.world, loaders
        self.stop, self.predictions = stop or StopRequest(), predictions
        self.folder = Path(config.OUTPUT)
        self.steps = len(loaders.train)
        self.accumulation = max(1, config.TRAIN.ACCUMULATION_STEPS)
        self.updates = -(-self.steps // self.accumulation)  # per epoch; the last may take fewer steps
        model.freeze_levels(config.TRAIN.OPTIMIZER.FREEZE_BACKBONE or 0)
        self.scale = scale = learning_rate_scale(config, self.world.size)
        strategy.prepare(
            model,
            lambda model: build_optimizer(config, model, scale, self.world.size),
            ema_decay=config.TRAIN.EMA.DECAY if config.TRAIN.EMA.ENABLE else None,
        )
        if strategy.ema is not None:  # a copy of the model, and copies are not compiled
            compile_model(strategy.ema.module, config.COMPILE)
        self.state = RunState(
            strategy=strategy,
            epoch=config.TRAIN.START_EPOCH - 1,
            scheduler=build_scheduler(config, strategy.optimizer, scale, self.updates),
            class_names=loaders.class_names,
            layout={
                "processes": self.world.size,
                "images per process and step": config.DATA.BATCH_SIZE,
                "steps per update": self.accumulation,
                "steps per epoch": self.steps,
            },
        )
        # Targets of mixup are soft and already smoothed.
        smoothing = 0.0 if loaders.mixup is not None else config.MODEL.LABEL_SMOOTHING
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self._bad_in_a_row = 0  # updates, at the end of the last epoch
        self._buffers = list(strategy.model.buffers())  # of the strategy's model, which `prepare` may replace

    def describe_schedule(self) -> Iterator[str]:
        """The rate that the optimizer gets and the number of updates, and a warning if these are few."""
        train, batch = self.config.TRAIN, int(self.scale * REFERENCE_BATCH)
        total, warmup = self.updates * train.EPOCHS, int(self.updates * train.WARMUP_EPOCHS)
        yield (
            f"learning rate {train.BASE_LR * self.scale:.3g} (TRAIN.BASE_LR {train.BASE_LR:.3g} x {batch} images per "
            f"update / {REFERENCE_BATCH}); {self.updates} updates per epoch, {total} in all, warm-up of {warmup}"
        )
        if total < 200 or 3 * warmup > total:
            yield "warning: too short to learn much; raise --epochs or --lr, lower --batch-size or TRAIN.WARMUP_EPOCHS"

    def fit(self, tracker: Tracker) -> bool:
        """Train to the last epoch, with evaluation, checkpoints and reports as configured.

        Returns:
            False if the run was stopped by a signal; it is saved and can be resumed.
        """
        started, state = time.perf_counter(), self.state
        first, last = state.epoch + 1, self.config.TRAIN.EPOCHS - 1
        first_step = state.progress["step"] if state.progress else 0
        tracker.begin(first, first * self.updates + -(-first_step // self.accumulation))
        try:
            if self.config.EVAL_FIRST:
                self._figures(tracker.log)
            for epoch in range(first, last + 1):
                if self._stagnates(epoch):
                    last = epoch - 1
                    tracker.log(f"no better top-1 for {self.config.TRAIN.EARLY_STOPPING} epochs (TRAIN.EARLY_STOPPING)")
                    break
                self._run_epoch(epoch, tracker)
            self.strategy.wait()
        except Stopped:
            self.strategy.wait()
            tracker.log(f"stopped by {self.stop.signal or 'another process'}; start again to resume")
            return False
        if self.predictions:
            what = f"validation, epoch {state.epoch + 1}" + ", averaged weights" * (self.strategy.ema is not None)
            self.predictions.report(self.folder, self.world, what, tracker, (state.epoch + 1) * self.updates)
        trained = f"epochs {first} to {last}" if first <= last else "nothing left to do"
        tracker.log(f"finished ({trained}) in {duration(time.perf_counter() - started)}")
        best_line = f"best top-1 {state.max_accuracy:.2f}%" if state.max_accuracy >= 0 else "not evaluated"
        if self.strategy.ema is not None:
            best_line += f", of the averaged weights {state.max_accuracy_ema:.2f}%"
        tracker.log(f"{best_line}; checkpoints, log.txt, history.jsonl and TensorBoard files are in {self.folder}")
        return True

    def _stagnates(self, epoch: int) -> bool:
        """Whether `TRAIN.EARLY_STOPPING` ends the run before `epoch`; by its history, so a resumed run agrees."""
        patience, history = self.config.TRAIN.EARLY_STOPPING, self.folder / "history.jsonl"
        if not patience or self.state.progress:
            return False
        records = run_on_main(self.world, lambda: read_history(history, print) if history.is_file() else [])
        records = [record for record in records if "top1" in record]
        # Of several equal ones the first.
        best = max(records, key=lambda r: max(r["top1"], r.get("top1_ema", 0.0)), default={"epoch": epoch})
        return epoch - 1 - best["epoch"] >= patience

    def _run_epoch(self, epoch: int, tracker: Tracker) -> None:
        config, state = self.config, self.state
        meter = self.train_one_epoch(epoch, tracker)
        evaluates = (epoch + 1) % config.EVAL_FREQ == 0 or epoch == config.TRAIN.EPOCHS - 1
        if evaluates:
            self._save_progress(self.steps, meter, tracker)
        for model in self.strategy.models if self.world.size > 1 else ():
            distribute_bn(model, self.world.size, reduce=True)
        record = {"epoch": epoch} | meter.summary() | {"lr": self._learning_rate()}
        tracker.log(
            f"epoch {epoch}/{config.TRAIN.EPOCHS} training: mean loss {record['train_loss']:.4f} "
            f"({record['images_per_second']:.1f} images/s)"
        )
        self._bad_in_a_row = meter.bad_in_a_row
        if meter.skipped:
            tracker.log(f"updates left out because the gradient was not finite: {meter.skipped} of {self.updates}")
        if bad := list(self.loaders.train.bad_images):
            tracker.log(f"bad training images replaced by this process: {len(bad)}; the first: {bad[0]}")
        state.epoch = epoch
        best = best_ema = False
        if evaluates:
            figures, best, best_ema = self._evaluate(tracker)
            record |= figures
        # Before the checkpoint: a run killed in between repeats the epoch and replaces the record.
        tracker.epoch(record)
        tracker.scalars((epoch + 1) * self.updates, {f"epoch/{k}": v for k, v in record.items() if k != "epoch"})
        numbered = (epoch + 1) % config.SAVE_FREQ == 0 or epoch == config.TRAIN.EPOCHS - 1
        self._save(tracker, numbered=numbered, best=best, best_ema=best_ema)

    def _save(self, tracker: Tracker, *, numbered: bool = True, best: bool = False, best_ema: bool = False) -> None:
        tracker.flush()  # a resumed run does not log these steps again
        keep = max(2, self.config.SAVE_CKPT_NUM)  # with only one, a damaged file would lose the run
        flags = {"numbered": numbered, "best": best, "best_ema": best_ema, "keep": keep}
        save(self.folder, self.state, self.config.dump(), **flags)

    def train_one_epoch(self, epoch: int, tracker: Tracker) -> EpochMeter:
        """One pass over the training set, or over the rest of it after a resume."""
        config = self.config
        self.strategy.network.train()
        meter = EpochMeter(self.world, self._bad_in_a_row, skips_overflow=self.strategy.skips_overflow)
        begin = self._go_on(meter)
        label = f"epoch {epoch}/{config.TRAIN.EPOCHS}"
        self.loaders.set_epoch(epoch, begin)
        batches = tracker.steps(self.loaders.train, begin=begin, total=self.steps, label=label)
        for step, batch in enumerate(batches, start=begin):
            seed_everything(self.world.device, config.SEED, epoch, step, self.world.rank)
            inputs, target = to_device(batch, self.world.device)
            images = len(target)
            if self.loaders.mixup is not None:
                mixed, target = self.loaders.mixup(inputs[0], target)
                inputs = (mixed, *inputs[1:])
            updated = self._step(epoch, step, inputs, target, images, meter)
            if (step + 1) % config.PRINT_FREQ == 0 or step + 1 == self.steps:
                self._report(epoch, step, label, meter, tracker)
                if meter.bad_in_a_row >= config.TRAIN.MAX_BAD_UPDATES:
                    self._give_up(epoch, step, inputs, target, meter.bad_in_a_row)
            if updated and self.stop.agreed():
                self._save_progress(step + 1, meter, tracker)
                raise Stopped
        return meter

    def _save_progress(self, step: int, meter: EpochMeter, tracker: Tracker) -> None:
        """Save in the middle of an epoch, after `step` of its steps."""
        # Running statistics differ between processes until the end of the epoch.
        buffers = [{name: value.cpu() for name, value in model.named_buffers()} for model in self.strategy.models]
        state = self.state
        state.progress = {
            "step": step,
            "layout": state.layout,
            "meter": meter.state_dict(),
            "buffers": gather(buffers),
        }
        self._save(tracker)
        state.progress = None

    def _go_on(self, meter: EpochMeter) -> int:
        """Restore the state of an interrupted epoch, if any; return the number of finished steps."""
        progress, self.state.progress = self.state.progress, None
        if progress is None:
            return 0
        try:
            meter.load_state_dict(progress["meter"])
            for model, saved in zip(self.strategy.models, progress["buffers"][self.world.rank]):
                for name, buffer in model.named_buffers():
                    buffer.copy_(saved[name])
            return int(progress["step"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint has an unusable state of an unfinished epoch ({error!r}); delete the file to resume "
                "from the end of the previous epoch"
            ) from None

    def _step(self, epoch: int, step: int, inputs: tuple, target: Tensor, images: int, meter: EpochMeter) -> bool:
        """Forward and backward; at the end of an accumulation group also the update. Returns whether it updated."""
        strategy = self.strategy
        group_start = step - step % self.accumulation
        group = min(self.accumulation, self.steps - group_start)
        if step == group_start:
            self.state.scheduler.step_update(epoch * self.updates + step // self.accumulation)
            strategy.optimizer.zero_grad(set_to_none=True)
            self._statistics = [buffer.clone() for buffer in self._buffers]
        updates = step + 1 == group_start + group
        with strategy.accumulate(updates):
            with forward_precision(self.world.device, strategy.dtype):
                loss = self.criterion(strategy.network(*inputs).float(), target)
            strategy.backward(loss / group)
        meter.add(loss, images)
        self._loss = loss.detach()
        if not updates:
            return False
        norm = strategy.update(self.config.TRAIN.CLIP_GRAD)
        meter.add_norm(norm)
        # BatchNorm has seen what spoilt the gradient. Reading the norm here would wait for the GPU.
        for buffer, before in zip(self._buffers, self._statistics):
            buffer.copy_(torch.where(norm.isfinite().to(buffer.device), buffer, before))
        strategy.average()
        return True

    def _give_up(self, epoch: int, step: int, inputs: tuple, target: Tensor, bad: int) -> None:
        """Save the batch at hand, with what is needed to replay its step, and raise `UserError` on every process."""
        self.strategy.wait()  # its end deletes temporary files
        world, sampler = self.world, self.loaders.train.sampler
        sampler.set_epoch(epoch, step)
        indices = [index for _, index in islice(sampler, sampler.batch_size)]
        name = f"bad_batch_epoch_{epoch}_step_{step}_rank_{{}}.pt"
        content = self.strategy.state_dict() | {
            "inputs": [value.cpu() for value in inputs],
            "targets": target.cpu(),
            "indices": indices,
            "loss": float(self._loss),
            "seed": [self.config.SEED, epoch, step, world.rank],  # of `seed_everything`
            "config": self.config.dump(),
        }
        if world.is_main or not math.isfinite(content["loss"]):
            save_atomic(content, self.folder / name.format(world.rank))
        raise UserError(
            f"{bad} updates in a row were left out because the gradient was not finite; the last batch, with loss "
            f"{content['loss']}, is in {self.folder / name.format(0)}; start again from the last checkpoint with a "
            "lower TRAIN.BASE_LR or a longer TRAIN.WARMUP_EPOCHS (or with --amp bf16 instead of fp16)"
        )

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

    def _figures(self, log: Callable[[str], None]) -> tuple[dict[str, float], dict[str, float] | None]:
        """Figures of the plain and the averaged model."""
        with self.strategy.evaluation() as models:
            keep = self.predictions and self.predictions.keep
            how = self.loaders, self.world, self.strategy.dtype, log, self._until_stopped, keep
            return evaluate_all(*models, *how)

    def _evaluate(self, tracker: Tracker) -> tuple[dict[str, float], bool, bool]:
        """Figures of the plain and the averaged model, and whether each is the best so far."""
        state = self.state
        label = f"epoch {state.epoch}/{self.config.TRAIN.EPOCHS}"

        def log(text: str) -> None:
            tracker.log(f"{label} {text}")

        plain, ema = self._figures(log)
        if not math.isfinite(plain["loss"]):
            self.strategy.wait()
            if self.world.is_main:  # resuming from it would end here again
                remove(self.folder / f"ckpt_epoch_{state.epoch}_step_{self.steps}{self.strategy.suffix}")
            raise UserError(
                f"the validation loss is {plain['loss']} after epoch {state.epoch}; the last checkpoint is from "
                "before; start again with a lower TRAIN.BASE_LR"
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

    def _until_stopped(self, batches: Iterable) -> Iterator:
        """The batches of an evaluation; raises `Stopped` on a signal (the run is saved before the evaluation)."""
        # All processes must vote equally often, though some may have one more batch.
        questions = len(self.loaders.val.dataset) // self.world.size // self.config.DATA.BATCH_SIZE
        for batch in self.strategy.batches(self.predictions.watch(batches) if self.predictions else batches):
            if questions > 0 and self.stop.agreed():
                raise Stopped
            questions -= 1
            yield batch
        for _ in range(questions):  # batches with only bad images are left out
            if self.stop.agreed():
                raise Stopped

    def _learning_rate(self) -> float:
        """The learning rate of the head, which is the largest if there is layer decay."""
        return max(group["lr"] for group in self.strategy.optimizer.param_groups)
