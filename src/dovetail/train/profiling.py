"""Where a step's time goes: some steps under torch's profiler, as a trace to open and as one screen to read.

    RUN/profile/trace.json.gz    opens in https://ui.perfetto.dev and chrome://tracing
    RUN/profile/summary.txt   the screen

Steps are slower under the profiler, so shares are what to read. On a GPU the phases' times are those of the host, which
runs ahead of it; the table of operations has the device's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from dovetail.errors import OptionsError
from dovetail.train.phases import PHASES, PREFIX

FOLDER = "profile"
TRACE = "trace.json.gz"
SUMMARY = "summary.txt"
WARM_UP = 3  # steps: kernels are chosen and memory is taken in the first
OPERATIONS = 12

log = logging.getLogger(__name__)


class Event(Protocol):
    """What is read of a torch profiler's averaged event; times are in microseconds over all steps."""

    key: str
    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    self_device_time_total: float


class StepProfile(Callback):
    """Profiles `steps` optimiser steps after the first `WARM_UP` of a run's part, in the first process."""

    def __init__(self, out: Path, steps: int, *, left: int, accumulate: int = 1) -> None:
        """
        Args:
            out: The run's folder.
            steps: How many.
            left: Optimiser steps that the run still has.
            accumulate: Forward passes per optimiser step.

        Raises:
            OptionsError: For fewer than one step, or more than there are.
        """
        if steps < 1:
            raise OptionsError(f"profile is {steps}; it must be at least 1, or 0 for none.")
        if steps + WARM_UP > left:
            raise OptionsError(
                f"profile is {steps}, and {WARM_UP} steps go before; the run has {left} left, so give fewer."
            )
        self.folder = out / FOLDER
        self.steps = steps
        self.accumulate = accumulate
        self.profiler: profile | None = None
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin after the warm-up, and write everything after the last step."""
        done, rest = divmod(batch_idx + 1, self.accumulate)
        if rest or not trainer.is_global_zero:
            return
        if done == WARM_UP:
            self._begin(pl_module.device)
        elif done == WARM_UP + self.steps:
            self._end(pl_module.device)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop profiling a run that ends early."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None

    def _begin(self, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes of its own starting and ending
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profiler = profile(activities=activities, acc_events=True)  # or torch 2.11 warns
        wait_for(device)
        self._began = time.perf_counter()
        self.profiler.start()

    def _end(self, device: torch.device) -> None:
        assert self.profiler is not None  # begun above
        wait_for(device)
        seconds = time.perf_counter() - self._began
        self.profiler.stop()
        self.folder.mkdir(exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / TRACE))
        text = summary(self.profiler.key_averages(), steps=self.steps, seconds=seconds)
        self.profiler = None
        (self.folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        log.info("%s\nThe trace is %s; open it in https://ui.perfetto.dev.", text, self.folder / TRACE)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(events: Iterable[Event], *, steps: int, seconds: float) -> str:
    """Return one screen: the phases of a step with their shares, then the operations that took longest by themselves.

    Args:
        events: Averaged events of all steps.
        steps: How many there were.
        seconds: Wall time of all steps together.
    """
    events = list(events)
    by_name = {event.key.removeprefix(PREFIX): event for event in events if event.key.startswith(PREFIX)}
    phases = {name: by_name[name].cpu_time_total / 1e6 for name in PHASES if name in by_name}
    phases["everything else"] = max(seconds - sum(phases.values()), 0.0)
    lines = [f"Profile of {steps} steps, {1e3 * seconds / steps:.1f} ms each (slower than unprofiled ones)."]
    lines += [f"  {name:<24}{1e3 * took / steps:9.1f} ms {took / seconds:6.1%}" for name, took in phases.items()]
    operations = [event for event in events if not event.key.startswith(PREFIX)]
    on_device = sum(event.self_device_time_total for event in operations) > 0
    where = "on the GPU" if on_device else "on the processor"
    lines += [f"Operations by their own time {where}, in a step:"]
    own = {
        event: event.self_device_time_total if on_device else event.self_cpu_time_total
        for event in operations
        if not event.key.startswith("ProfilerStep")
    }
    longest = sorted(own, key=lambda event: own[event], reverse=True)[:OPERATIONS]
    lines += [
        f"  {event.key[:48]:<48}{own[event] / steps / 1e3:9.2f} ms {event.count / steps:8.1f}x" for event in longest
    ]
    return "\n".join(lines)
