"""One step of a run as a Lightning module: views, loss, backward; then clipping, the optimiser, the teacher, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dovetail.distributed import mean_over_ranks, rank
from dovetail.errors import RunError
from dovetail.networks.plain_attention import prefer_plain_attention
from dovetail.objectives.objective import Loss
from dovetail.schedules import Moment, value_at
from dovetail.train.defaults import Settings
from dovetail.train.freezing import EncoderFreeze
from dovetail.train.learner import Learner
from dovetail.train.logs import Reading
from dovetail.train.monitors import FiniteGuard, Health, TapWatch
from dovetail.train.optimisers import clip_gradients, drop_frozen_gradients, rule_names, set_hyperparameters
from dovetail.train.own import Own
from dovetail.train.parts import average_whole_gradients
from dovetail.train.phases import phase
from dovetail.train.prototypes import PrototypeUse, prototype_uses
from dovetail.train.sharded_checkpoints import FOLDER, fill, placed_optimiser_state
from dovetail.train.sharding import cut_over, put_together
from dovetail.train.undo import Undo
from dovetail.views.view import View

Batches = Callable[[int], Iterable[Any]]
"""Function from the number of finished steps to the following batches of this process, `accumulate` per step."""

ToViews = Callable[[Any, torch.device], list[View]]
"""Function from a batch of the loader to views on the device."""

ImageNames = Callable[[Any], Sequence[str]]
"""Function from a batch to the names of its images."""


def is_convolutional(network: nn.Module) -> bool:
    """Whether channels-last memory is faster: with BatchNorm, or more convolutions than a patch embedding."""
    modules = list(network.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    return convolutions > 0 and (convolutions > 2 or any(isinstance(module, _BatchNorm) for module in modules))


def seed_step(seed: int, step: int, micro_batch: int) -> None:
    """Seed torch's random numbers as a pure function of (seed, step, micro-batch, rank)."""
    mixed = 0
    for number in (seed, step, micro_batch, rank()):
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**64
        mixed ^= mixed >> 29
    torch.manual_seed(mixed % 2**63)


@runtime_checkable
class Stoppable(Protocol):
    """Batches that raise `StoppedWaiting` instead of waiting for the next one if they are asked to stop."""

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Set the function that is asked while waiting."""


class TimedBatches:
    """`count` batches of a loader, and the seconds spent waiting for them."""

    def __init__(self, source: Iterable[Any], count: int) -> None:
        self.source = source
        self.count = count
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.source)
        for _ in range(self.count):
            before = time.perf_counter()
            try:
                with phase("waiting for data"):
                    batch = next(iterator)
            except StopIteration:
                return
            self.seconds += time.perf_counter() - before
            yield batch


class LearnerModule(LightningModule):
    """One step: views, loss, backward, queues and centres; then clipping, the optimiser, the teacher, once."""

    def __init__(
        self, learner: Learner, settings: Settings, batches: Batches, to_views: ToViews, steps_done: int
    ) -> None:
        super().__init__()
        self.learner = learner
        self.settings = settings
        self.batches = batches
        self.to_views = to_views
        self.steps_done = steps_done
        self.saved: dict[str, Any] | None = None
        self.timed: TimedBatches | None = None
        self.losses: list[Loss] = []
        self.grad_norms: list[Tensor] = []
        self.taps = TapWatch()
        self.guard = FiniteGuard(may_skip=settings.skip_nonfinite_steps)
        # A single process cannot save sharded weights after an error, so buffers are only kept for skipping.
        self.undo = None if settings.sharded and not settings.skip_nonfinite_steps else Undo(learner)
        self.health: dict[str, Health] = {}
        self.prototypes: dict[str, PrototypeUse] = {}
        self.encoder_freeze = EncoderFreeze(
            settings.freeze_encoder_epochs,
            distributed=settings.world_size > 1,
            sharded=settings.sharded,
            statistics=settings.encoder_batch_norm == "frozen",
        )
        self.names: ImageNames | None = None
        self.own = Own()
        self._images: list[str] = []
        self._uncut: list[Learner] = []  # in a list, so that its empty weights are not registered
        self._skipping = False
        self._begun = self._updating = False  # a forward pass changes buffers, then the optimiser changes weights
        self.stop_asked: Callable[[], bool] = lambda: False
        self._phases = ExitStack()  # phases that start and end in different calls of Lightning
        self._micro_batch = 0
        # Weights are sharded by rows, so their memory format must not change.
        self._channels_last = is_convolutional(learner.student.network) and not settings.sharded
        if self._channels_last:
            learner.to(memory_format=torch.channels_last)
        if settings.accelerator == "cpu" and settings.precision == "bf16-mixed":
            prefer_plain_attention(learner, sizes=[view.sides for view in learner.recipe.views.views])

    @property
    def moment(self) -> Moment:
        """Moment of the run."""
        return self.settings.moment(self.steps_done)

    @property
    def seconds_waited(self) -> float:
        """Seconds spent waiting for data so far."""
        return 0.0 if self.timed is None else self.timed.seconds

    def train_dataloader(self) -> TimedBatches:
        left = (self.settings.total_steps - self.steps_done) * self.settings.accumulate
        batches = self.batches(self.steps_done)
        if isinstance(batches, Stoppable):
            batches.stop_when(self.stop_asked)
        self.timed = TimedBatches(batches, left)
        return self.timed

    def configure_model(self) -> None:
        """Shard the weights if the run is sharded."""
        if self.settings.sharded:
            assert self.device_mesh is not None  # made by the strategy
            self._uncut = [self.learner]
            self.learner = cut_over(self.learner, self.device_mesh["data_parallel"])
            self.undo = Undo(self.learner) if self.undo is not None else None

    def put_together(self) -> None:
        """Gather the weights; every process must call it."""
        if self._uncut:
            learner = self._uncut.pop()
            put_together(learner, self.learner)
            self.learner = learner

    def configure_optimizers(self) -> Optimizer:
        optimiser = self.own.build(rule_names(self.learner), self.learner.recipe.optimiser, self.learner.lr_scale)
        state, self.saved = self.saved, None
        if state is not None:
            self.own.check_marks(optimiser, state)
        if state is not None and FOLDER in state:
            fill(self.learner, optimiser, state)
        elif state is not None:
            load_optimiser(optimiser, state)
        return optimiser

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> list[View]:
        """Make the views, before autocast starts."""
        if self.undo is not None and self._micro_batch == 0:
            self.undo.keep()
        self._begun = True
        if self.names is not None:
            self._images.extend(self.names(batch))
        seed_step(self.settings.seed, self.steps_done, self._micro_batch)
        with phase("views"):
            views = self.to_views(batch, device)
            if not self._channels_last:
                return views
            return [replace(view, pixels=view.pixels.contiguous(memory_format=torch.channels_last)) for view in views]

    def training_step(self, views: list[View], batch_idx: int) -> Tensor:
        network = self.learner.student.network
        teacher = None if self.learner.teacher is None else self.learner.teacher.network
        logs = self.settings.logs_after(self.steps_done + 1)
        with (
            self.encoder_freeze.applied(network, teacher, self.moment) as zeros,
            self.taps.watching(network) if logs else nullcontext(),
        ):
            loss: Loss = self.learner(views, self.moment)
        if logs and self._micro_batch == 0:
            self.prototypes = prototype_uses(self.learner.assignments(self.moment))
        self.losses.append(Loss(loss.total.detach(), loss.parts))
        return loss.total + sum(zeros) if zeros else loss.total

    def on_before_backward(self, loss: Tensor) -> None:
        self._enter_phase("backward")

    def on_after_backward(self) -> None:
        self._leave_phase()
        self.learner.update()
        self._micro_batch += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._enter_phase("clipping and optimiser")
        spec = self.learner.recipe.optimiser
        lr = self.own.rate(spec, self.settings.lr, self.moment)
        set_hyperparameters(optimizer, spec, self.settings.lr, self.moment, lr)
        drop_frozen_gradients(optimizer, self.moment)
        self.encoder_freeze.drop_gradients(self.learner.student.network, self.moment)
        if self.settings.sharded:
            average_whole_gradients([p for group in optimizer.param_groups for p in group["params"]])
        norm = clip_gradients(optimizer, spec)
        loss = mean_loss(self.losses[-self.settings.accumulate :])
        images, self._images = self._images, []
        self._skipping = not self.guard.lets_pass(loss, norm, step=self.steps_done + 1, lr=lr, images=images)
        if not self._skipping:
            self.grad_norms.append(norm)
        elif self.undo is not None:
            self.undo.back(optimizer)
            del self.losses[-self.settings.accumulate :]
        self._updating = True

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.undo is not None:
            self.undo.keep_counts(optimizer)
        optimizer.step(closure=optimizer_closure)
        self._leave_phase()
        self.steps_done += 1
        self._micro_batch = 0
        if not self._skipping:
            with phase("teacher's average"):
                self.learner.move_teacher(self.moment)
        elif self.undo is not None:
            self.undo.counts_back(optimizer)
        self._begun = self._updating = False

    def back_to_last_step(self, optimiser: Optimizer) -> bool:
        """Restore the state after the last finished step; return False if that is no longer possible."""
        if self._begun and (self._updating or self.undo is None):
            return False
        if self._begun and self.undo is not None:
            self.undo.back(optimiser)
        self._begun = False
        return True

    def _enter_phase(self, name: str) -> None:
        self._phases.enter_context(phase(name))

    def _leave_phase(self) -> None:
        self._phases.close()

    def reading(self, *, images_per_second: float, data_wait: float) -> Reading:
        """Return the means since the last reading, with losses averaged over all processes; waits for the device."""
        recipe, step_taken = self.learner.recipe, self.settings.moment(self.steps_done - 1)
        loss = mean_loss(self.losses)
        own = torch.stack([loss.total.float(), *(part.float() for part in loss.parts.values())])
        numbers = mean_over_ranks(own).tolist()
        grad_norm = float(torch.stack(self.grad_norms).mean())
        self.losses, self.grad_norms = [], []
        self.health, content = self.taps.read(), self.taps.content()
        return Reading(
            step=self.steps_done,
            epoch=self.moment.epoch,
            loss=numbers[0],
            parts=dict(zip(loss.parts, numbers[1:], strict=True)),
            weights={term.name: value_at(term.weight, step_taken) for term in recipe.terms},
            lr=self.own.rate(recipe.optimiser, self.settings.lr, step_taken),
            weight_decay=value_at(recipe.optimiser.weight_decay, step_taken),
            teacher_momentum=self._teacher_momentum(step_taken),
            grad_norm=grad_norm,
            images_per_second=images_per_second,
            data_wait=data_wait,
            effective_rank={tap: one.rank for tap, one in self.health.items()},
            spread={tap: one.spread for tap, one in self.health.items()},
            within_image_share={tap: float(one.within) for tap, one in content.items()},
            position_share={tap: float(one.position) for tap, one in content.items()},
            prototypes_used={term: float(one.used) for term, one in self.prototypes.items()},
            teacher_entropy={term: float(one.entropy) for term, one in self.prototypes.items()},
            skipped_steps=self.guard.skipped,
        )

    def _teacher_momentum(self, step_taken: Moment) -> float | None:
        """Return the momentum of the last update; None if no term reads a part of the teacher that moved.

        Terms with a target only read the teacher's encoder, which follows that of the student.
        """
        targets_only = all(term.target is not None for term in self.learner.recipe.terms)
        if self.learner.teacher is None or (targets_only and self.encoder_freeze.holds(step_taken)):
            return None
        return self.learner.momentum(self.moment)


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Load the optimiser's state of a checkpoint; raise `RunError` if it does not match."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    try:
        optimiser.load_state_dict(placed_optimiser_state(state["optimiser"], parameters))
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise RunError(
            f"The checkpoint's optimiser does not match this model and recipe ({reason}); use the run's config.yaml."
        ) from error


def mean_loss(losses: Sequence[Loss]) -> Loss:
    """Return the means of losses and of each of their parts, on the device."""
    if len(losses) == 1:
        return losses[0]
    gathered: dict[str, list[Tensor]] = {}
    for loss in losses:
        for name, part in loss.parts.items():
            gathered.setdefault(name, []).append(part)
    parts = {name: torch.stack(values).mean() for name, values in gathered.items()}
    return Loss(torch.stack([loss.total for loss in losses]).mean(), parts)
