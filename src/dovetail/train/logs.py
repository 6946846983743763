"""Logs of a run: `metrics.jsonl`, `train.log`, TensorBoard and other loggers, and lines or a progress bar.

Only the first process of a run writes.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dovetail.durations import in_words
from dovetail.errors import DovetailError, Interrupted, counted, printable
from dovetail.files.schema import parsed, read_lines
from dovetail.output import lost_outputs

METRICS = "metrics.jsonl"
TEXT_LOG = "train.log"
PACKAGE = "dovetail"
CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")

# Messages of Lightning that do not apply, because this package handles order, logging and saving.
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
    """One line of the log after `step` optimiser steps. Losses and gradient norm are means since the last line.

    Attributes:
        step: Number of finished optimiser steps.
        epoch: Number of finished epochs.
        loss: Weighted sum of all terms, which is minimised.
        parts: Raw parts of every term, as "TERM/PART".
        weights: Weight of every term.
        lr: Learning rate of the last step.
        weight_decay: Weight decay of the last step.
        teacher_momentum: Momentum of the last update of the teacher; None without a teacher, or with one whose outputs
            do not change because they come from a frozen encoder.
        grad_norm: Norm of all gradients before clipping.
        images_per_second: Images per second over all devices.
        data_wait: Fraction of time that training waited for data, in [0, 1].
        effective_rank: Effective rank of each tap; empty if the batch is too small.
        spread: Spread of each tap.
        within_image_share: Variance between cells of the same image divided by the variance of all cells, in [0, 1],
            for each map. 0 if all cells of an image are alike.
        position_share: Share of the variance within images that the mean map over images explains, in [0, 1], for each
            map. 1 if cells only encode their position in the crop.
        prototypes_used: Effective number of prototypes of each term with prototypes: the perplexity of the teacher's
            mean assignment over a sample of the batch.
        teacher_entropy: Mean entropy of the teacher's assignments of each term with prototypes, as a fraction of the
            maximum, in [0, 1].
        skipped_steps: Number of steps of the run that were skipped because a value was not finite.
        knn: kNN accuracy of the frozen encoder on held-out images, in [0, 1]; None in most lines.
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
        """Return all values with flat names, such as "parts/encoder/slot", for loggers of scalars."""
        numbers: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                numbers |= {f"{name}/{key}": number for key, number in value.items()}
            elif value is not None and name != "step":
                numbers[name] = value
        return numbers

    def line(self, total_steps: int) -> str:
        """Return the reading as one readable line."""
        knn = "" if self.knn is None else f"kNN {self.knn:.1%}  "
        dense = f"mIoU {shares_in_words(self.dense)}  " if self.dense else ""
        return (
            f"step {self.step}/{total_steps}  epoch {self.epoch}  loss {self.loss:.4f}  {knn}{dense}lr {self.lr:.3g}  "
            f"{self.images_per_second:.1f} img/s  waiting for data {self.data_wait:.0%}"
        )


def shares_in_words(shares: Mapping[str, float]) -> str:
    """Return scores as text, such as "decoder/linear 14.2%, encoder/linear 20.1%"."""
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


class RunLog:
    """Writes readings and messages of a run to `folder`, loggers and the screen; does nothing if not `active`."""

    def __init__(self, folder: Path, *, total_steps: int, active: bool, loggers: Sequence[Logger] = ()) -> None:
        self.folder = folder
        self.total_steps = total_steps
        self.active = active
        self.loggers = loggers
        self._bar: Progress | None = None
        self._failing: set[object] = set()  # already reported
        self._torn = False  # the last line of `METRICS` was only partly written

    @contextmanager
    def opened(self, start_step: int) -> Iterator[RunLog]:
        """Log in this context; drops lines after `start_step`, which a resumed run writes again."""
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
        file.setFormatter(FILE_FORMAT)
        screen: logging.Handler
        if self._bar is not None:
            screen = RichHandler(console=self._bar.console, show_path=False, show_level=False, log_time_format="%X")
            screen.addFilter(lambda record: record.levelno > logging.INFO or not hasattr(record, "shown_by_bar"))
        else:
            screen = logging.StreamHandler()
            screen.setFormatter(PrintableFormatter("%(message)s"))
        return [file, screen]

    def end_with(self, error: BaseException, step: int) -> None:
        """Write why the run ended early to `TEXT_LOG`. The screen shows it where the error is handled.

        A second Ctrl-C has no message of its own, so the error gets one for the screen.
        """
        if not self.active:
            return
        if isinstance(error, KeyboardInterrupt):
            reason = f"Stopped at once by a second Ctrl-C after step {step}; add --resume to continue."
            error.args = (reason,)
        elif isinstance(error, DovetailError):
            reason = str(error)
        else:
            reason = f"The run ended after step {step} ({type(error).__name__}: {error})."
        note(self.folder, reason, logging.INFO if isinstance(error, Interrupted) else logging.ERROR)

    def resuming(self, step: int, *, images_per_step: int) -> str:
        """Return from which step the run resumes, and how long the other steps take at its last speed, if known.

        Such as "Resuming from step 40 of 200; at 8.0 img/s as before, the other 160 steps take about 11 min."
        """
        said = f"Resuming from step {step:,} of {self.total_steps:,}"
        left = self.total_steps - step
        speeds = [one["images_per_second"] for one in read_lines(self.folder / METRICS, Timed)]
        if left <= 0 or not speeds or not speeds[-1] > 0:
            return f"{said}."
        seconds = left * images_per_step / speeds[-1]
        others = f"the other {counted(left, 'step')} take" if left > 1 else "the last step takes"
        return f"{said}; at {speeds[-1]:.1f} img/s as before, {others} about {in_words(seconds)}."

    def write_first(self, step: int, *, loss: float, seconds: float, next_line: int) -> None:
        """Show the first step of this process, a sign of life if steps are slow. `METRICS` does not have it."""
        if self.active:
            words = f"step {step}/{self.total_steps}  loss {loss:.4f}  took {seconds:.1f} s"
            log.info("%s; the next line follows step %d", words, next_line, extra={"shown_by_bar": True})
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, status=f"loss {loss:.4f} at step {step}")

    def advance(self, step: int) -> None:
        """Update the progress bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def write(self, reading: Reading, *, seconds_left: float) -> None:
        """Write a reading to all outputs; a failure is reported once and the run continues."""
        if not self.active:
            return
        self._append(reading)
        self._tell_of_outputs()
        for logger in self.loggers:
            try:
                logger.log_metrics(reading.flat(), step=reading.step)
            except Exception as error:  # servers fail in many ways, and the run must continue
                self._tell(logger, f"The logger {type(logger).__name__} failed", reading.step, error)
        line = f"{reading.line(self.total_steps)}  left {timedelta(seconds=round(seconds_left))}"
        log.info("%s", line, extra={"shown_by_bar": True})
        if self._bar is not None:
            loss = f"loss {reading.loss:.4f} at step {reading.step}"  # the bar moves on before the next reading
            status = f"{loss}  {reading.images_per_second:.1f} img/s  wait {reading.data_wait:.0%}"
            self._bar.update(self._bar.task_ids[0], completed=reading.step, status=status)

    def end_loggers(self, status: str, step: int) -> None:
        """Close the loggers as "success" or "failed"; a failure is only reported."""
        for logger in self.loggers:
            try:
                logger.finalize(status)
            except Exception as error:
                self._tell(logger, f"The logger {type(logger).__name__} cannot be closed", step, error)
        self.loggers = ()

    def _append(self, reading: Reading) -> None:
        """Append the line of a reading; after a failed write the next one starts on a new line."""
        try:
            with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn + json.dumps(vars(reading)) + "\n")
            self._torn = False
        except OSError as error:  # if there is no space for a checkpoint either, that ends the run
            self._torn = True
            self._tell(METRICS, f"{self.folder / METRICS} cannot be written", reading.step, error)

    def _tell_of_outputs(self) -> None:
        """Log that an output is closed, to explain why the screen shows nothing."""
        for name in lost_outputs():
            if name not in self._failing:
                self._failing.add(name)
                where = self.folder / TEXT_LOG
                log.warning("Cannot write to %s any more; the run continues and logs to %s.", name, where)

    def _tell(self, failing: object, what: str, step: int, error: Exception) -> None:
        """Warn of each failure once."""
        if failing not in self._failing:
            self._failing.add(failing)
            reason = f"{type(error).__name__}: {error}"
            log.warning(
                "%s after step %d (%s); the run continues, and later failures are not reported.", what, step, reason
            )


def note(folder: Path, text: str, level: int = logging.INFO) -> None:
    """Append a message to the `TEXT_LOG` of a run only, as before its first step, when its log is not open yet."""
    record = logging.LogRecord(PACKAGE, level, __file__, 0, "%s", (text,), None)
    with suppress(OSError), (folder / TEXT_LOG).open("a", encoding="utf-8") as file:  # a full disk is reported later
        file.write(FILE_FORMAT.format(record) + "\n")


def progress_bar() -> Progress:
    """Return a progress bar with progress, remaining time, rate, loss and share of data waiting."""
    return Progress(
        TextColumn("{task.completed}/{task.total} steps"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )


def drop_readings_after(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, and an incomplete last line."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")  # a damaged byte must not stop a run
    found = ((line, parsed(line, Stepped)) for line in text.splitlines())
    kept = [line for line, content in found if content is not None and content["step"] <= step]
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    aside.replace(path)


class Stepped(TypedDict):
    """Fields of every line of a metrics file."""

    step: int


class Timed(TypedDict):
    """Speed in a line of a metrics file."""

    images_per_second: float


class PrintableFormatter(logging.Formatter):
    """Escapes control characters, which a terminal would execute."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


FILE_FORMAT = PrintableFormatter("%(asctime)s %(levelname)s %(message)s")


class _IdleRemarks(logging.Filter):
    """Drops messages that start with one of `IDLE_REMARKS`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().lstrip().startswith(IDLE_REMARKS)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide messages and warnings of Lightning that do not apply; all others are shown."""
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
