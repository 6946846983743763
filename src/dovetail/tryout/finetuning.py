"""Fine-tunes the best starts, one seed after another, until the budget is used up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dovetail.downstream.finetune import finetune_segment_with
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.table.results import FEWEST_DRAWN, Results
from dovetail.sizes import Size, as_size, sides
from dovetail.train.defaults import best_accelerator
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import Clock, Start
from dovetail.weights.exported import read_exported

CPU_BATCH, SMALLEST_CROP_PX = 8, 32
FEWEST_STEPS, USUAL_STEPS, PASSES = 40, 500, 40
PROBES = (3, 9)  # steps of two short trials; the difference of their durations is the time of six steps
KEPT_SHARE = 0.9  # fraction of the remaining time to plan for, since the speed of a machine varies
SCORE = "mIoU"


@dataclass(frozen=True)
class Trial:
    """The duration of a trial, and its number of training images."""

    step_seconds: float
    other_seconds: float
    train_images: int


class FineTuning:
    """Fine-tunes a model from several starts with the same seeds."""

    def __init__(self, options: TryOptions, runs: Mapping[str, Path], out: Path) -> None:
        """Create the fine-tuning. `runs` are the pre-training folders by name, `out` is the folder for trials."""
        self.options = options
        self.runs = runs
        self.out = out
        self.last: Results | None = None

    @property
    def crop_size(self) -> Size:
        """The side of the crops, or (height, width), in pixels: the largest of all pre-trainings' views.

        A slower pre-training may have smaller views. With crops of these sizes, the starts could not be compared.
        """
        found = [sides(as_size(read_exported(run).info["image_size"])) for run in self.runs.values()]
        height, width = (max(SMALLEST_CROP_PX, *values) for values in zip(*found, strict=True))
        return as_size((height, width))

    def call(self, start: Start, *, out: Path, seeds: int, steps: int) -> Results:
        """Fine-tune from a start with the remaining seeds. All starts use the same crops and normalisation."""
        run = self.runs[start.run] if start.run else next(iter(self.runs.values()))
        asked: dict[str, Any] = {"classes": self.options.classes, "label_map": list(self.options.label_map)}
        if best_accelerator() == "cpu":  # the default crops of 256 px would take most of the time
            asked |= {"crop_size": self.crop_size, "batch_size": CPU_BATCH}
        asked |= {"run": run, "data": self.options.labels, "start": [start.part], "out": out}
        asked |= {"seeds": seeds, "seed": self.options.seed, "steps": steps}
        found = finetune_segment_with(FinetuneSegmentOptions.given(asked), ending=False)
        assert found is not None  # only a check returns nothing
        self.last = found
        return found

    def timed(self, start: Start) -> Trial:
        """Return the duration of a trial, measured with two short trials that are discarded."""
        seconds, images = [], 1
        for steps in PROBES:
            with TemporaryDirectory() as folder:
                began = time.perf_counter()
                with redirect_stdout(StringIO()):
                    found = self.call(start, out=Path(folder), seeds=1, steps=steps)
                seconds.append(time.perf_counter() - began)
                images = int(found.data["train_images"])
        step = max((seconds[1] - seconds[0]) / (PROBES[1] - PROBES[0]), 1e-3)
        return Trial(step, max(seconds[0] - PROBES[0] * step, 0.0), images)

    def rounds(self, starts: Sequence[Start], steps: int, clock: Clock) -> dict[Start, tuple[float, ...]]:
        """Return the scores of each start, one per seed, for as many seeds as the budget allows (at least one)."""
        scores: dict[Start, tuple[float, ...]] = {}
        latest = 0.0  # the first round also reads the masks
        for seeds in range(1, self.options.seeds + 1):
            if scores and latest > clock.left():
                print(f"\nNo time for another seed: {clock.left_in_words()}.", flush=True)
                break
            began = time.monotonic()
            with clock.stage("fine-tuning"):
                scores |= {start: self.scores(start, seeds, steps) for start in starts}
            latest = time.monotonic() - began
        return scores

    def scores(self, start: Start, seeds: int, steps: int) -> tuple[float, ...]:
        """Return the scores of a start, one per seed."""
        name = f"{start.run or 'none'}-{Path(start.part).stem}"
        print(f"\nFine-tuning from {start.title}", flush=True)
        found = self.call(start, out=self.out / name, seeds=seeds, steps=steps)
        return found.rows[0].scores[SCORE].values


def steps_for(trial: Trial, *, starts: int, seconds: float) -> int:
    """Return the number of steps per trial so that three seeds of every start fit, up to the usual number of steps."""
    each = KEPT_SHARE * seconds / (starts * FEWEST_DRAWN)
    usual = max(USUAL_STEPS, PASSES * trial.train_images // 16)
    return min(max(int((each - trial.other_seconds) / trial.step_seconds), FEWEST_STEPS), usual)
