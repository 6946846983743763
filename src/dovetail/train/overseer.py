"""Work between steps: log lines, checkpoints, and stopping on request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dovetail.distributed import max_over_ranks
from dovetail.errors import DovetailError, RunError
from dovetail.files.finite import check_finite, first_not_finite
from dovetail.networks.network import Network
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.defaults import Settings
from dovetail.train.interrupts import StopRequests, stop_signals
from dovetail.train.logs import Reading, RunLog, shares_in_words
from dovetail.train.monitors import CollapseWatch, ContentWatch
from dovetail.train.prototypes import PrototypeWatch
from dovetail.train.step import LearnerModule, mean_loss
from dovetail.train.threads import KEY as THREADS
from dovetail.train.threads import threads_of

CHECKPOINT_FORMAT = 1
# Several processes must stop and save at the same step, and agreeing on it costs time. A cluster may give a job only
# half a minute to stop, so with slow steps the processes agree after each step.
AGREE_SECONDS = 2.0
AGREE_STEPS = 10

Measured = TypeVar("Measured")
Knn = Callable[[Network], float]
"""Function from a network to the kNN accuracy of its encoder on held-out images."""
Dense = Callable[[Network], dict[str, float]]
"""Function from a network to the mIoU of its frozen maps, as "MAP/PROTOCOL"."""

log = logging.getLogger(__name__)


class AtTheEnd(Callback):
    """Calls callbacks only at the end of a run, because before that no process of a sharded run has a whole model."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call `on_train_end` of every callback."""
        for callback in self.callbacks:
            callback.on_train_end(trainer, pl_module)


class Overseer(Callback):
    """Logs, saves and stops a run, only between optimiser steps and never between micro-batches.

    The first process computes kNN and dense scores, and the others wait for it at their next communication.
    """

    def __init__(
        self,
        settings: Settings,
        checkpoints: Checkpoints,
        stops: StopRequests,
        knn: Knn | None = None,
        dense: Dense | None = None,
    ):
        self.settings = settings
        self.checkpoints = checkpoints
        self.stops = stops
        self.knn = knn
        self.dense = dense
        self.collapse = CollapseWatch()
        self.content = ContentWatch()
        self.prototypes = PrototypeWatch()
        self.last_reading: Reading | None = None
        self.run_log: RunLog | None = None
        self._step, self._first = 0, True
        self._read_step, self._read_at, self._waited = 0, 0.0, 0.0
        self._saved_at = 0.0
        self._saved_step: int | None = None  # nothing to save before training starts
        self._saving = False
        self._asked_step, self._asked_at, self._ask_after = 0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timers and handle signals, after Lightning has set its own handlers."""
        self.stops.listen(*stop_signals())
        self._step = self._read_step = self._saved_step = self._module(pl_module).steps_done
        self._asked_step = self._ask_after = self._step
        if trainer.is_global_zero:
            self.checkpoints.clear_leftovers()
        else:
            self.knn = self.dense = None
        if self.knn is not None and self._step == 0:  # finds unreadable images before the first step
            log.info("kNN %.1f%% before training", 100 * self.knn(self._module(pl_module).learner.exported))
        if self.dense is not None and self._step == 0:
            shares = self.dense(self._module(pl_module).learner.exported)
            log.info("mIoU of frozen maps before training: %s", shares_in_words(shares))
        self._read_at = self._saved_at = self._asked_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, save and stop if due."""
        module = self._module(pl_module)
        step = module.steps_done
        if step == self._step:
            return  # between micro-batches of a step
        self._step = step
        if self.run_log is not None:
            self.run_log.advance(step)
        if self.settings.logs_after(step):
            self._read(module)
        elif self._first:
            self._tell_first(module)
        self._first = False
        late = time.perf_counter() - self._saved_at >= 60 * self.settings.save_every_minutes
        stop, save = self._agreed(trainer, step, save=late)
        if save or stop or self.settings.saves_after(step):
            self._save(trainer, module)
        if stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save unsaved steps if the data ended early, and gather a sharded model."""
        module = self._module(pl_module)
        if module.steps_done < self.settings.total_steps:
            self._save_last_step(trainer, module)
        module.put_together()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the loggers after a successful run."""
        self._end_loggers(trainer, "success")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save unsaved finished steps and close the loggers after a failed run."""
        if isinstance(exception, Exception) and not self._saving:  # not for a second Ctrl-C, which stops immediately
            self._save_last_step(trainer, self._module(pl_module))
        self._end_loggers(trainer, "failed")

    def _save_last_step(self, trainer: Trainer, module: LearnerModule) -> None:
        """Write a checkpoint of the last finished step after an error, without the other processes."""
        step = module.steps_done
        if self._saved_step in (None, step) or self.settings.sharded or not trainer.is_global_zero:
            return
        if not module.back_to_last_step(trainer.optimizers[0]):
            return
        try:
            state = self._state(trainer, module)
            self._check(module, agreed=False)
            self.checkpoints.save(state)
        except DovetailError as error:  # the error that ended the run is reported later
            log.warning("Step %d could not be saved: %s", step, error)
            return
        log.warning("The run ended at step %d with a checkpoint; use --resume to continue.", step)

    def _end_loggers(self, trainer: Trainer, status: str) -> None:
        """Hide the loggers from Lightning, where an error of a logger would end the run before the export."""
        if self.run_log is not None:
            self.run_log.end_loggers(status, self._step)
            trainer.loggers = []

    def _agreed(self, trainer: Trainer, step: int, *, save: bool) -> tuple[bool, bool]:
        """Return whether any process should stop or save; several processes only agree from time to time.

        A signal that one process received then counts for all, so that all stop alike.
        """
        if trainer.world_size == 1:
            return self.stops.received is not None, save
        if step < self._ask_after:
            return False, False
        now = time.perf_counter()
        seconds = (now - self._asked_at) / max(step - self._asked_step, 1)
        own = torch.tensor([self.stops.received or 0, float(save), seconds], device=trainer.strategy.root_device)
        number, any_save, slowest = max_over_ranks(own).tolist()
        self._asked_step, self._asked_at = step, now
        self._ask_after = step + steps_between(slowest)
        if number > 0:
            self.stops.received = int(number)
        return number > 0, any_save > 0

    def _tell_first(self, module: LearnerModule) -> None:
        """Show the first step of this process as soon as it ends, because the first regular line may take minutes."""
        if self.run_log is not None and module.losses:
            every, total = self.settings.log_every_steps, self.settings.total_steps
            self.run_log.write_first(
                self._step,
                loss=float(mean_loss(module.losses).total),
                seconds=time.perf_counter() - self._read_at,
                next_line=min((self._step // every + 1) * every, total),
            )

    def _read(self, module: LearnerModule) -> None:
        if not module.losses:
            return  # all steps since the last reading were skipped
        now, waited = time.perf_counter(), module.seconds_waited
        seconds = max(now - self._read_at, 1e-9)
        steps = module.steps_done - self._read_step
        reading = module.reading(
            images_per_second=steps * self.settings.global_batch / seconds,
            data_wait=min((waited - self._waited) / seconds, 1.0),
        )
        before = time.perf_counter()
        if self.settings.knn_after(module.steps_done):
            reading = replace(reading, knn=self._measured("kNN", self.knn, module))
        if self.settings.dense_after(module.steps_done):
            reading = replace(reading, dense=self._measured("mIoU of maps", self.dense, module) or {})
        now += time.perf_counter() - before  # exclude this time from training
        self._read_step, self._read_at, self._waited = module.steps_done, now, waited
        self.last_reading = reading
        left = (self.settings.total_steps - module.steps_done) * seconds / steps
        if self.run_log is not None:
            self.run_log.write(reading, seconds_left=left)
        done = reading.step / self.settings.total_steps
        sentences = self.collapse.warnings(module.health)
        sentences += self.content.warnings(reading.within_image_share, reading.position_share, share_done=done)
        sentences += self.prototypes.warnings(reading.prototypes_used, reading.teacher_entropy, share_done=done)
        for sentence in sentences:
            log.warning("%s", sentence)

    def _measured(
        self, what: str, measure: Callable[[Network], Measured] | None, module: LearnerModule
    ) -> Measured | None:
        if measure is None:
            return None
        try:
            return measure(module.learner.exported)
        except (DovetailError, OSError) as error:  # the scores are optional, so the run must continue
            log.warning(
                "%s could not be computed after step %d (%s); the run continues.", what, module.steps_done, error
            )
            return None

    def _save(self, trainer: Trainer, module: LearnerModule) -> None:
        """Write a checkpoint of a state that was checked to be finite."""
        self._saving = True
        module.guard.settle()
        self._check(module, agreed=True)
        step = module.steps_done
        state = self._state(trainer, module)
        keep = self.settings.moment(step).epoch if self.settings.keeps_after(step) else None
        if self.settings.sharded:
            self.checkpoints.save_pieces(state, keep_as_epoch=keep)
        elif trainer.is_global_zero:
            self.checkpoints.save(state, keep_as_epoch=keep)
        trainer.strategy.barrier("checkpoint")
        self._saved_at, self._saved_step = time.perf_counter(), step
        self._saving = False

    def _state(self, trainer: Trainer, module: LearnerModule) -> dict[str, Any]:
        """Return the state that a run resumes from."""
        return {
            "format": CHECKPOINT_FORMAT,
            "step": module.steps_done,
            "settings": self.settings.as_dict(),
            "learner": module.learner.state_dict(),
            "optimiser": trainer.optimizers[0].state_dict(),
            **module.own.marks(trainer.optimizers[0]),
            "skipped_steps": module.guard.skipped,
            THREADS: threads_of(self.settings),
        }

    def _check(self, module: LearnerModule, *, agreed: bool) -> None:
        """Raise `RunError` if a weight or a buffer is not finite; with `agreed` in all processes at once."""
        state = module.learner.state_dict()
        if agreed and module.trainer.world_size > 1:
            device = module.trainer.strategy.root_device
            wrong = torch.tensor(float(first_not_finite(state) is not None), device=device)
            if float(max_over_ranks(wrong)) and first_not_finite(state) is None:
                raise RunError("The weights of another process are not finite; see its messages.")
        check_finite(
            state,
            f"The model after step {module.steps_done}",
            "it is not saved and the last checkpoint is kept: try a lower learning rate, a longer warm-up or "
            "--precision 32-true",
        )

    def _module(self, module: LightningModule) -> LearnerModule:
        if not isinstance(module, LearnerModule):
            raise TypeError(f"expected a LearnerModule, got {type(module).__name__}")
        return module


def steps_between(seconds: float) -> int:
    """Return the number of steps between two agreements of the processes, for the duration of a step in seconds."""
    return max(1, min(AGREE_STEPS, int(AGREE_SECONDS / max(seconds, 1e-9))))
