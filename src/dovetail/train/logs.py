"""What a run leaves to read: `metrics.jsonl`, `train.log`, TensorBoard events and other loggers, lines or a bar.

Only the first process of a run writes.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dovetail.errors import printable
from dovetail.files.schema import parsed
from dovetail.output import lost_outputs

METRICS = "metrics.jsonl"
TEXT_LOG = "train.log"
PACKAGE = "dovetail"
CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

# Lightning's remarks that are wrong or idle here, because order, logging and saving are this package's.
IDLE_REMARKS = (
    "GPU available",
    "TPU available",
    "💡 Tip",
    "`Trainer.fit` stopped",
    "LOCAL_RANK",
    "You are using a CUDA device",
    "Initializing distributed",
    "----------",
)
IDLE_WARNINGS = (
    r".*[GT]PU available but not used",
    r".*The number of training batches .* is smaller than the logging interval",
    r".*Found \d+ module\(s\) in eval mode at the start of training",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """One line of the log, after `step` optimiser steps; losses and the gradient's norm are means since the last line.

    Attributes:
        step: Optimiser steps done.
        epoch: Whole epochs done.
        loss: The weighted sum that is minimised.
        parts: Every term's raw parts, as "TERM/PART".
        weights: Every term's weight.
        lr: Learning rate of the last step.
        weight_decay: Of the last step.
        teacher_momentum: Of the last move of the teacher; None without one.
        grad_norm: Norm of all gradients, before clipping.
        images_per_second: Over all devices.
        data_wait: Share of the time in which training waited for data, in [0, 1].
        effective_rank: Of each tap; empty where the batch is too small to tell.
        spread: Of each tap.
        within_image_share: Of each map: the variance between cells of one image over the variance of all cells, in
            [0, 1]. 0 where every cell of an image is alike.
        position_share: Of each map: how much of the variance within images the mean map over images explains, in
            [0, 1]. 1 where cells tell nothing but where they lie in the crop.
        prototypes_used: Of each term with prototypes: their effective number, the perplexity of the teacher's mean
            assignment over a sample of the batch.
        teacher_entropy: Of each term with prototypes: the mean entropy of the teacher's assignments, as a share of
            the largest possible one, in [0, 1].
        skipped_steps: Steps of the whole run left out because a number was not finite.
        knn: Share of held-out images that kNN on the frozen encoder classifies rightly, in [0, 1]; None in most lines.
        dense: mIoU of frozen maps on held-out images, in [0, 1], as "MAP/PROTOCOL"; empty in most lines.
    """

    step: int
    epoch: int
    loss: float
    parts: dict[str, float]
    weights: dict[str, float]
    lr: float
    weight_decay: float
    teacher_momentum: float | None
    grad_norm: float
    images_per_second: float
    data_wait: float
    effective_rank: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    within_image_share: dict[str, float] = field(default_factory=dict)
    position_share: dict[str, float] = field(default_factory=dict)
    prototypes_used: dict[str, float] = field(default_factory=dict)
    teacher_entropy: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    knn: float | None = None
    dense: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Return every number under one name, as "parts/encoder/slot", for loggers of scalars."""
        numbers: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                numbers |= {f"{name}/{key}": number for key, number in value.items()}
            elif value is not None and name != "step":
                numbers[name] = value
        return numbers

    def line(self, total_steps: int) -> str:
        """Return the reading in one line for people."""
        knn = "" if self.knn is None else f"kNN {self.knn:.1%}  "
        dense = f"mIoU {shares_in_words(self.dense)}  " if self.dense else ""
        return (
            f"step {self.step}/{total_steps}  epoch {self.epoch}  loss {self.loss:.4f}  {knn}{dense}lr {self.lr:.3g}  "
            f"{self.images_per_second:.1f} img/s  waiting for data {self.data_wait:.0%}"
        )


def shares_in_words(shares: Mapping[str, float]) -> str:
    """Return such as "decoder/linear 14.2%, encoder/linear 20.1%"."""
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


class RunLog:
    """Writes a run's readings and remarks into `folder`, to loggers and to the screen; inert where not `active`."""

    def __init__(self, folder: Path, *, total_steps: int, active: bool, loggers: Sequence[Logger] = ()) -> None:
        self.folder = folder
        self.total_steps = total_steps
        self.active = active
        self.loggers = loggers
        self._bar: Progress | None = None
        self._failing: set[object] = set()  # told so once
        self._torn = False  # the disk took but a part of the last line of `METRICS`

    @contextmanager
    def opened(self, start_step: int) -> Iterator[RunLog]:
        """Log within; lines past `start_step` of a run that is resumed are dropped, as they come again."""
        if not self.active:
            yield self
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_readings_after(self.folder / METRICS, start_step)
        self._bar = progress_bar() if sys.stderr.isatty() else None
        handlers = self._handlers()
        package = logging.getLogger(PACKAGE)
        level = package.level
        for handler in handlers:
            package.addHandler(handler)
        package.setLevel(logging.INFO)
        if self._bar is not None:
            self._bar.add_task("", total=self.total_steps, completed=start_step, status="")
            self._bar.start()
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()
            for handler in handlers:
                package.removeHandler(handler)
                handler.close()
            package.setLevel(level)

    def _handlers(self) -> list[logging.Handler]:
        file = logging.FileHandler(self.folder / TEXT_LOG, encoding="utf-8")
        file.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(message)s"))
        screen: logging.Handler
        if self._bar is not None:
            screen = RichHandler(console=self._bar.console, show_path=False, show_level=False, log_time_format="%X")
            screen.addFilter(lambda record: record.levelno > logging.INFO or not hasattr(record, "shown_by_bar"))
        else:
            screen = logging.StreamHandler()
            screen.setFormatter(PrintableFormatter("%(message)s"))
        return [file, screen]

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def write(self, reading: Reading, *, seconds_left: float) -> None:
        """Write a reading everywhere; what fails of the files and loggers is told once, and the run goes on."""
        if not self.active:
            return
        self._append(reading)
        self._tell_of_outputs()
        for logger in self.loggers:
            try:
                logger.log_metrics(reading.flat(), step=reading.step)
            except Exception as error:  # servers fail in many ways, and the run is the work
                self._tell(logger, f"The logger {type(logger).__name__} takes no numbers", reading.step, error)
        line = f"{reading.line(self.total_steps)}  left {timedelta(seconds=round(seconds_left))}"
        log.info("%s", line, extra={"shown_by_bar": True})
        if self._bar is not None:
            status = f"loss {reading.loss:.4f}  {reading.images_per_second:.1f} img/s  wait {reading.data_wait:.0%}"
            self._bar.update(self._bar.task_ids[0], completed=reading.step, status=status)

    def end_loggers(self, status: str, step: int) -> None:
        """End the loggers as "success" or "failed"; one that fails is told, and what follows the run goes on."""
        for logger in self.loggers:
            try:
                logger.finalize(status)
            except Exception as error:
                self._tell(logger, f"The logger {type(logger).__name__} cannot be ended", step, error)
        self.loggers = ()

    def _append(self, reading: Reading) -> None:
        """Append the reading's line; where the disk does not take it, the next one that it takes begins anew."""
        try:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn + json.dumps(vars(reading)) + "\n")
            self._torn = False
        except OSError as error:  # where there is no room for a checkpoint either, that ends the run
            self._torn = True
            self._tell(METRICS, f"{self.folder / METRICS} cannot be written", reading.step, error)

    def _tell_of_outputs(self) -> None:
        """Note an output that nobody reads any more, so that the log says why the screen fell silent."""
        for name in lost_outputs():
            if name not in self._failing:
                self._failing.add(name)
                where = self.folder / TEXT_LOG
                log.warning("This run's %s cannot be written any more; the run goes on, and logs to %s.", name, where)

    def _tell(self, failing: object, what: str, step: int, error: Exception) -> None:
        """Warn of what fails, once each."""
        if failing not in self._failing:
            self._failing.add(failing)
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s after step %d (%s); the run goes on, and later failures are not told.", what, step, reason)


def progress_bar() -> Progress:
    """Return a bar with share done, remaining time, rate, loss and data-wait share."""
    return Progress(
        TextColumn("{task.completed}/{task.total} steps"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )


def drop_readings_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics file that lie past `step`, and a last line cut short by a kill."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")  # a disk that damages a byte costs no run
    found = ((line, parsed(line, Stepped)) for line in text.splitlines())
    kept = [line for line, content in found if content is not None and content["step"] <= step]
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    aside.replace(path)


class Stepped(TypedDict):
    """What every line of a metrics file says."""

    step: int


class PrintableFormatter(logging.Formatter):
    """Spells out letters that a terminal would act on instead of showing them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _IdleRemarks(logging.Filter):
    """Drops remarks that begin with one of `IDLE_REMARKS`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith(IDLE_REMARKS)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's idle remarks and warnings off the screen within; all others pass."""
    silence = _IdleRemarks()
    loggers: list[Any] = [logging.getLogger(name) for name in CHATTY]
    targets = [target for logger in loggers for target in (logger, *logger.handlers)]
    for target in targets:
        target.addFilter(silence)
    try:
        with warnings.catch_warnings():
            for pattern in IDLE_WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for target in targets:
            target.removeFilter(silence)
