"""The engine: Lightning's Trainer trains a `Learner`, and this file decides when to log, save and stop.

A run is one pass of Lightning over the remaining batches, so the state of a run is one integer: the number of finished
optimiser steps. Batches and random numbers are pure functions of that number. A run that is killed at any point and
resumed therefore ends with the same weights, bit for bit, on the same machine.
"""

from __future__ import annotations

import inspect
import logging
import re
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel

from dovetail.errors import DataError, Interrupted, OptionsError, RunError, StoppedWaiting
from dovetail.train.batch_norm import joint_batch_norm
from dovetail.train.checkpoints import LAST, Checkpoints
from dovetail.train.compiling import compiled
from dovetail.train.defaults import Settings
from dovetail.train.interrupts import StopRequests, requeue_slurm_job, signal_name, stop_signals
from dovetail.train.learner import Learner
from dovetail.train.logs import RunLog, quiet_lightning
from dovetail.train.monitors import RECORD
from dovetail.train.overseer import CHECKPOINT_FORMAT, AtTheEnd, Dense, Knn, Overseer
from dovetail.train.own import Own, trainer_arguments
from dovetail.train.profiling import WARM_UP, StepProfile
from dovetail.train.sharded_checkpoints import FOLDER
from dovetail.train.step import Batches, ImageNames, LearnerModule, ToViews
from dovetail.train.threads import tell_of_threads

PATIENCE_SECONDS = 10.0  # waiting time for a batch after a run with several processes is asked to stop
SAME_RUN = (
    "seed",
    "num_images",
    "epochs",
    "steps_per_epoch",
    "global_batch",
    "lr",
    "max_steps",
    "freeze_encoder_epochs",
    "encoder_batch_norm",
)
LENGTH = ("epochs", "max_steps")  # options that lengthen a finished run

# Messages of gloo and NCCL when the other process has ended.
LOST_PROCESS = r"(?i)connection (was )?(closed|reset|refused)|broken pipe|timed out|gloo|nccl|socket|remote process"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        steps: Total number of finished optimiser steps.
        seconds: Wall time since this process started or resumed the run.
        images_per_second: Images per second in this time, over all devices; 0 if no steps were left.
        loss: Mean loss in the last line of the log; None if no steps were left.
        checkpoint: Path of the last checkpoint.
        collapsed: Taps whose features were collapsed at the end.
    """

    steps: int
    seconds: float
    images_per_second: float
    loss: float | None
    checkpoint: Path
    collapsed: tuple[str, ...] = ()


def train(
    learner: Learner,
    *,
    batches: Batches,
    to_views: ToViews,
    settings: Settings,
    out: Path,
    resume: bool = False,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    names: ImageNames | None = None,
    compile_networks: bool = False,
    profile: int = 0,
    knn: Knn | None = None,
    dense: Dense | None = None,
    own: Own | None = None,
    trainer_args: Mapping[str, Any] | None = None,
) -> Result:
    """Train `learner` to the end of `settings` and return the result.

    Writes `metrics.jsonl`, `train.log`, `tensorboard/` and `checkpoints/` into `out`.

    Args:
        learner: Learner to train; on the CPU afterwards. Its initial weights and the batches must be pure functions of
            the seed, so that a run killed before its first checkpoint can be repeated.
        batches: Function of the number of finished steps; called once per process, after the processes are connected.
        to_views: Function that makes views on the device; runs in float32, with the random numbers of the step.
        settings: Settings from `dovetail.train.defaults.resolve`.
        out: Run folder.
        resume: Resume from the newest intact checkpoint in `out`; start from the beginning if there is none.
        loggers: Lightning loggers in addition to TensorBoard.
        callbacks: Lightning callbacks, called after the engine's own; with sharded weights, only called at the end.
        names: Function from a batch to the names of its images, for the error about a loss that is not finite.
        compile_networks: Use torch.compile for the networks; see `dovetail.train.compiling`.
        profile: Number of steps to profile into `out`/profile; see `dovetail.train.profiling`.
        knn: Function that computes kNN accuracy of the exported network, before the first step and as in `settings`.
        dense: Function that computes dense scores of the exported network, at the same times.
        own: Optimiser and schedule that replace those of the recipe.
        trainer_args: Further arguments of Lightning's Trainer.

    Raises:
        Interrupted: After SIGTERM or Ctrl-C, with a checkpoint.
        DovetailError: If the loss is not finite, the checkpoint belongs to another run, the disk is full, or sharded
            weights are to be compiled or evaluated.
    """
    check_whole(settings, compile_networks=compile_networks, knn=knn, dense=dense)
    checkpoints = Checkpoints(out / "checkpoints")
    state = checkpoints.load(whole=not settings.sharded) if resume else None
    start = 0 if state is None else restore(learner, state, settings)
    if start >= settings.total_steps:
        if state is not None and FOLDER in state and (whole := checkpoints.load()):  # no step will load the parts
            restore(learner, whole, settings)
        return Result(start, 0.0, 0.0, None, checkpoints.last)
    started = time.perf_counter()
    stops = StopRequests()
    profiling = profiles(settings, out, profile, start)
    others = [AtTheEnd(callbacks)] if settings.sharded else callbacks
    with quiet_lightning():
        tensorboard = TensorBoardLogger(out, name="", version="tensorboard", purge_step=start + 1 if start else None)
        module = LearnerModule(learner, settings, batches, to_views, start)
        module.names, module.guard.record = names, out / RECORD
        module.own = own or Own()
        # Several processes stop after the same step if possible; a process that exits alone breaks the others.
        module.stop_asked = partial(stops.waited, PATIENCE_SECONDS if settings.world_size > 1 else 0.0)
        take_up(module, state)
        overseer = Overseer(settings, checkpoints, stops, knn, dense)
        trainer = build_trainer(
            settings,
            out,
            callbacks=[overseer, *profiling, *others],
            loggers=[tensorboard, *loggers],
            further=trainer_arguments(trainer_args),
        )
        networks = compiled(learner) if compile_networks else nullcontext()
        run_to_the_end(trainer, module, overseer, out, networks=networks, resumed=resume, state=state)
    seconds = time.perf_counter() - started
    rate = (module.steps_done - start) * settings.global_batch / seconds
    loss = overseer.last_reading.loss if overseer.last_reading else None
    return Result(module.steps_done, seconds, rate, loss, checkpoints.last, tuple(overseer.collapse.collapsed))


def run_to_the_end(
    trainer: Trainer,
    module: LearnerModule,
    overseer: Overseer,
    out: Path,
    *,
    networks: AbstractContextManager[object],
    resumed: bool,
    state: dict[str, Any] | None,
) -> None:
    """Run the remaining steps with the run's log open and signals caught.

    Raises:
        Interrupted: After SIGTERM or Ctrl-C.
        DovetailError: If the data ended, or another process did.
    """
    settings, stops, start = module.settings, overseer.stops, module.steps_done
    run_log = RunLog(out, total_steps=settings.total_steps, active=trainer.is_global_zero, loggers=trainer.loggers)
    with run_log.opened(start):
        overseer.run_log = run_log
        if resumed:
            log.info("%s", run_log.resuming(start, images_per_step=settings.global_batch))
            tell_of_length(module, state)
            tell_of_threads(state or {}, settings)
        stops.listen(*stop_signals())
        try:
            with networks:
                fit(trainer, module, settings)
            check_ending(module, stops, settings, out)
        except BaseException as error:
            run_log.end_with(error, module.steps_done)
            raise
        finally:
            stops.restore()


def check_whole(settings: Settings, *, compile_networks: bool, knn: Knn | None, dense: Dense | None) -> None:
    """Raise `OptionsError` for options that need a whole network if the weights are sharded."""
    if compile_networks and settings.sharded:
        raise OptionsError("--compile does not support sharded weights (--strategy fsdp); leave out --compile.")
    if knn is not None and settings.sharded:
        raise OptionsError("--knn-data does not support sharded weights (--strategy fsdp); leave out --knn-data.")
    if dense is not None and settings.sharded:
        raise OptionsError("--dense-data does not support sharded weights (--strategy fsdp); leave out --dense-data.")


def profiles(settings: Settings, out: Path, steps: int, start: int) -> list[Callback]:
    """Return the profiler of `steps` steps; none for 0 or if a resumed run has too few steps left."""
    left = settings.total_steps - start
    if steps and start and steps + WARM_UP > left:
        log.warning("%d steps are left, too few to profile %d steps after %d warm-up steps.", left, steps, WARM_UP)
        return []
    return [StepProfile(out, steps, left=left, accumulate=settings.accumulate)] if steps else []


def take_up(module: LearnerModule, state: dict[str, Any] | None) -> None:
    """Give a checkpoint's state to the module, which loads its parts once the processes are connected."""
    module.saved = state
    module.guard.skipped = 0 if state is None else int(state.get("skipped_steps", 0))


def fit(trainer: Trainer, module: LearnerModule, settings: Settings) -> None:
    """Run the remaining steps.

    Raises:
        RunError: If another process has ended.
    """
    joint = joint_batch_norm(module.learner, on_gpu=settings.accelerator == "cuda")
    try:
        with joint if settings.sync_batch_norm else nullcontext():
            trainer.fit(module)
    except StoppedWaiting:
        return  # `check_ending` reports the reason
    except SystemExit as error:  # Lightning raises it for a second Ctrl-C
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        if settings.world_size > 1 and re.search(LOST_PROCESS, str(error)):
            raise RunError(
                f"Another process of this run ended or is unreachable ({first_line(error)}); see its messages "
                "above, and resume with --resume."
            ) from error
        raise


def restore(learner: Learner, state: dict[str, Any], settings: Settings) -> int:
    """Load the learner from a checkpoint and return the number of finished steps.

    Raises:
        RunError: If the checkpoint belongs to a run with other settings or another model.
    """
    if state.get("format") != CHECKPOINT_FORMAT:
        raise RunError("The checkpoint was written by another version of Dovetail; start again with --overwrite.")
    lacking = [name for name in ("settings", "learner") if name not in state]
    if lacking:
        raise RunError(f"The checkpoint has no {lacking[0]}; restore a copy of it or start with --overwrite.")
    then = Settings.from_dict(state["settings"])
    longer = is_lengthened(then, state["step"], settings)
    for name in SAME_RUN:
        if longer and name in LENGTH:
            continue
        before, now = getattr(then, name), getattr(settings, name)
        if before != now and name == "num_images":
            raise RunError(
                f"The run was started with {before:,} images, but there are {now:,} now; restore the original images."
            )
        if before != now:
            raise RunError(
                f"The run was started with {name} {before}, but it is {now} now; "
                "use the run's config.yaml or start again with --overwrite."
            )
    if FOLDER in state:  # each process loads its part once the weights are sharded
        return int(state["step"])
    try:
        learner.load_state_dict(state["learner"])
    except RuntimeError as error:
        first = (str(error).splitlines()[1].strip() if "\n" in str(error) else str(error))[:200]
        raise RunError(
            f"The checkpoint does not match this model and recipe ({first}); use the run's config.yaml."
        ) from error
    return int(state["step"])


def is_lengthened(then: Settings, step: int, now: Settings) -> bool:
    """Whether the run of a checkpoint was finished and now has more steps."""
    return then.total_steps <= step < now.total_steps


def tell_of_length(module: LearnerModule, state: dict[str, Any] | None) -> None:
    """Log how a finished run is lengthened."""
    then = None if state is None else Settings.from_dict(state["settings"])
    now, start, spec = module.settings, module.steps_done, module.learner.recipe.optimiser
    if then is None or not is_lengthened(then, start, now):
        return
    before = module.own.rate(spec, then.lr, then.moment(then.total_steps - 1))
    log.info(
        "The run had finished its %d steps and is lengthened to %d. The learning rate and all other schedules now "
        "follow a run of %d steps: the learning rate changes from %.3g to %.3g and then falls again.",
        *(then.total_steps, now.total_steps, now.total_steps, before, module.own.rate(spec, now.lr, now.moment(start))),
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error message, without the source location that torch adds."""
    return re.sub(r"^\[.*?\] ", "", str(error).split("\n", 1)[0]).rstrip(".")


def check_ending(module: LearnerModule, stops: StopRequests, settings: Settings, out: Path) -> None:
    """Raise unless the run has finished all steps."""
    done, total = module.steps_done, settings.total_steps
    if done >= total:
        return
    if stops.received is None:
        raise DataError(f"The data ended after step {done} of {total}; check the images and resume with --resume.")
    if stops.received == getattr(signal, "SIGUSR1", None):
        requeue_slurm_job()
    saved = f"with a checkpoint in {out / 'checkpoints'}" if (out / "checkpoints" / LAST).exists() else "without one"
    raise Interrupted(
        f"Stopped by {signal_name(stops.received)} after step {done} of {total}, {saved}; run the same command with "
        "--resume to continue.",
        signal_number=stops.received,
    )


def build_trainer(
    settings: Settings,
    out: Path,
    *,
    callbacks: list[Callback],
    loggers: list[Logger],
    further: Mapping[str, Any] | None = None,
) -> Trainer:
    """Return Lightning's Trainer for the run: one pass, without its validation, checkpoints and progress bars."""
    on_gpu = settings.accelerator == "cuda"
    if on_gpu and not settings.deterministic:
        torch.set_float32_matmul_precision("high")  # TF32 for operations that autocast leaves in float32
    usual: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "deterministic": settings.deterministic,
        "benchmark": on_gpu and not settings.deterministic,
    }
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy_of(settings),
        plugins=[precision_plugin(settings)],
        accumulate_grad_batches=settings.accumulate,
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=out,
        **{**usual, **(further or {})},
    )


def strategy_of(settings: Settings) -> str | Strategy:
    """Return Lightning's strategy: a single process, DDP, or sharded weights."""
    if settings.sharded:
        return ModelParallelStrategy(data_parallel_size=settings.world_size, tensor_parallel_size=1)
    if settings.world_size == 1:
        return settings.strategy
    # BatchNorm statistics are synchronised or per process; queues and centres are equal in all processes.
    options: dict[str, Any] = {buffers_option(): False, "gradient_as_bucket_view": True}
    return DDPStrategy(**options)


def buffers_option() -> str:
    """Return DistributedDataParallel's argument for broadcasting rank 0's buffers before each forward pass."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch 2.14 renamed it


class CachedAutocast(MixedPrecision):
    """bfloat16 autocast that casts each weight once per step, not once per view."""

    def autocast_context_manager(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=True)


def precision_plugin(settings: Settings) -> Precision:
    """Return Lightning's plugin for the precision."""
    if settings.precision != "bf16-mixed":
        return Precision()
    # The cache would keep the weights of every block until the end of the step, which sharding is meant to avoid.
    kind = MixedPrecision if settings.sharded else CachedAutocast
    return kind("bf16-mixed", settings.accelerator)
