"""Profiles of training steps with torch's profiler, as a trace and as a summary.

    RUN/profile/trace.json.gz    opens in https://ui.perfetto.dev and chrome://tracing
    RUN/profile/summary.txt      the summary

Steps are slower under the profiler, so compare shares, not times. On a GPU the times of phases are those of the host,
which runs ahead of the device; the table of operations has the times of the device.
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
WARM_UP = 3  # steps; the first ones select kernels and allocate memory
OPERATIONS = 12

log = logging.getLogger(__name__)


class Event(Protocol):
    """The used attributes of an averaged event of torch's profiler; times are in microseconds over all steps."""

    key: str
    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    self_device_time_total: float


class StepProfile(Callback):
    """Profiles `steps` optimiser steps in the first process, after the first `WARM_UP` steps."""

    def __init__(self, out: Path, steps: int, *, left: int, accumulate: int = 1) -> None:
        """
        Args:
            out: Run folder.
            steps: Number of steps to profile.
            left: Number of remaining optimiser steps of the run.
            accumulate: Forward passes per optimiser step.

        Raises:
            OptionsError: If `steps` is below 1 or more than the run has left.
        """
        if steps < 1:
            raise OptionsError(f"profile is {steps}; it must be at least 1, or 0 for none.")
        if steps + WARM_UP > left:
            raise OptionsError(
                f"profile is {steps}, plus {WARM_UP} warm-up steps, but the run has {left} left; use a smaller number."
            )
        self.folder = out / FOLDER
        self.steps = steps
        self.accumulate = accumulate
        self.profiler: profile | None = None
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start after the warm-up, and write the results after the last step."""
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
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hides its messages about start and end
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profiler = profile(activities=activities, acc_events=True)  # avoids a warning of torch 2.11
        wait_for(device)
        self._began = time.perf_counter()
        self.profiler.start()

    def _end(self, device: torch.device) -> None:
        assert self.profiler is not None  # started above
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
    """Wait for the GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(events: Iterable[Event], *, steps: int, seconds: float) -> str:
    """Return the summary: the phases of a step with their shares, and the slowest operations.

    Args:
        events: Averaged events of all steps.
        steps: Number of steps.
        seconds: Total wall time of all steps.
    """
    events = list(events)
    by_name = {event.key.removeprefix(PREFIX): event for event in events if event.key.startswith(PREFIX)}
    phases = {name: by_name[name].cpu_time_total / 1e6 for name in PHASES if name in by_name}
    phases["everything else"] = max(seconds - sum(phases.values()), 0.0)
    lines = [f"Profile of {steps} steps, {1e3 * seconds / steps:.1f} ms each (slower than without the profiler)."]
    lines += [f"  {name:<24}{1e3 * took / steps:9.1f} ms {took / seconds:6.1%}" for name, took in phases.items()]
    operations = [event for event in events if not event.key.startswith(PREFIX)]
    on_device = sum(event.self_device_time_total for event in operations) > 0
    where = "on the GPU" if on_device else "on the CPU"
    lines += [f"Operations by self time {where} per step:"]
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
