"""Times the smallest version of each stage of `dovetail try`, before the first stage begins.

A pre-training of three steps, the evaluation of its frozen features and two short fine-tunings are run in a temporary
folder. The smallest comparison consists of such stages, so their duration tells whether it fits into the budget, and
how much time is left for the pre-trainings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dovetail.downstream.evaluate import evaluate_dense
from dovetail.downstream.table.results import FEWEST_DRAWN
from dovetail.durations import in_words
from dovetail.errors import RunError, counted
from dovetail.report.history import read_history
from dovetail.run.budget import FEWEST_STEPS as FEWEST_PRETRAINING
from dovetail.run.folder import read_config
from dovetail.run.pretrain import pretrain
from dovetail.run.timing import TIMED, WARM_UP
from dovetail.sizes import Size, as_size
from dovetail.tryout.finetuning import FEWEST_STEPS, PROBES, FineTuning, Trial
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import BEST, PRETRAINING_SHARE, Clock, Plan
from dovetail.weights.exported import read_exported

FROZEN = ("encoder", "decoder")
FEWEST_SEEDS = 2  # a single seed does not even show how much scores vary
REHEARSED = 3  # steps of pre-training; the first one is slower, and the last one is timed
LEAST_PRETRAINING = 10  # steps, at the view size of the rehearsal; fewer show nothing
MARGIN = 1.2  # of the recommended budget over the expected time, since the speed of a machine varies
ROUNDED_FROM_MINUTES, ROUNDED_TO_MINUTES = 10, 5  # longer recommended budgets are multiples of five minutes


@dataclass(frozen=True)
class Costs:
    """Seconds of the smallest stages.

    Attributes:
        run: A pre-training, apart from its steps: listing and loading images, export, page.
        step: A step of pre-training.
        frozen: An evaluation of the frozen features of one start.
        trial: A trial of fine-tuning.
        image_size: View size of the rehearsal in pixels.
    """

    run: float
    step: float
    frozen: float
    trial: Trial
    image_size: Size

    def later(self, plan: Plan, seeds: int = 1) -> float:
        """Return the seconds of the smallest evaluation and fine-tuning after all pre-trainings."""
        tuned = min(len(plan.starts), 1 + BEST)
        trial = self.trial.other_seconds + FEWEST_STEPS * self.trial.step_seconds
        return (1 + len(plan.pretrainings)) * self.frozen + seeds * tuned * trial

    def before(self, plan: Plan, steps: int) -> float:
        """Return the seconds of all pre-trainings with this number of steps each."""
        each = self.run + (WARM_UP + TIMED + steps) * self.step  # the budget of a run is planned with timed steps
        return len(plan.pretrainings) * each

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the state file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Costs:
        """Return the costs from the result of `as_dict`."""
        return cls(**{**values, "trial": Trial(**values["trial"]), "image_size": as_size(values["image_size"])})


def rehearsed(options: TryOptions, plan: Plan) -> Costs:
    """Run the smallest version of each stage in a temporary folder, print a line for each, and return its costs.

    Raises:
        DovetailError: A stage cannot be carried out, for example because the labels cannot be read.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder)
        first = plan.pretrainings[0]
        with rehearsing(f"a pre-training of {REHEARSED} steps with {first.method}"):
            began = time.perf_counter()
            pretrain(
                data=str(options.data),
                model=plan.model,
                method=first.method,
                preset=first.preset,
                init=plan.init,
                image_size=options.image_size,
                seed=options.seed,
                max_steps=REHEARSED,
                log_every_steps=1,
                out=out / "run",
            )
            run = time.perf_counter() - began
        size = as_size(read_exported(out / "run").info["image_size"])
        tuning = FineTuning(options, {first.name: out / "run"}, out / "finetune")
        with rehearsing(f"fine-tunings of {' and '.join(map(str, PROBES))} steps"):
            trial = tuning.timed(plan.starts[0])
        with rehearsing("an evaluation of frozen features"):
            began = time.perf_counter()
            evaluate_frozen(options, out / "frozen", size, run=out / "run")
            frozen = time.perf_counter() - began
        step = seconds_of_step(out / "run")
        return Costs(max(run - REHEARSED * step, 0.0), step, frozen, trial, size)


@contextmanager
def rehearsing(part: str) -> Iterator[None]:
    """Print which part is timed, and drop the output of the part itself."""
    print(f"  {part} …", flush=True)
    with silenced():
        yield


def evaluate_frozen(options: TryOptions, out: Path, size: Size, **subject: Any) -> None:
    """Evaluate the frozen maps of a run, or of a model with its starting weights, with a linear classifier."""
    evaluate_dense(
        data=options.labels,
        at=FROZEN,
        protocols=["linear"],
        lr=[0.01, 0.1, 1.0],
        weight_decay=[1e-4],
        steps=200,
        image_size=size,
        classes=options.classes,
        seed=options.seed,
        out=out,
        **subject,
    )


def seconds_of_step(run: Path) -> float:
    """Return the duration of the last step in the log of a run."""
    config = read_config(run)
    images = int(config["batch_size"]) * int(config["accumulate"])
    return images / float(read_history(run).last["images_per_second"])


@contextmanager
def silenced() -> Iterator[None]:
    """Drop the output of the block; errors are raised as usual."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def about_budget(options: TryOptions, plan: Plan, costs: Costs, clock: Clock) -> str:
    """Return what the budget allows, in one or two sentences.

    Raises:
        RunError: The budget is too short for two seeds after pre-trainings of a few steps, so it would show nothing.
    """
    seeds = min(FEWEST_SEEDS, options.seeds)
    before = clock.spent() + costs.before(plan, LEAST_PRETRAINING)
    total = before + costs.later(plan, seeds)
    if total > clock.budget:
        raise RunError(
            f"The budget of {options.budget} is too short to show anything: the smallest comparison, with "
            f"{counted(seeds, 'seed')}, takes about {in_words(total)} on these images; use --budget "
            f"{lasting(options, plan, costs, clock)}, which has time for pre-trainings of {FEWEST_PRETRAINING} steps."
        )
    each = seconds_for(plan, costs, clock, left=len(plan.pretrainings), seeds=seeds)
    later = clock.left() - len(plan.pretrainings) * (each + costs.run)
    told = (
        f"Of the budget of {options.budget}, {in_words(clock.spent())} were taken by timing; each pre-training gets "
        f"about {in_words(each)}, and evaluation and fine-tuning about {in_words(later)}."
    )
    if before + costs.later(plan, min(FEWEST_DRAWN, options.seeds)) > clock.budget:
        told += (
            f" This may be too short for {FEWEST_DRAWN} seeds, without which no gain can be shown; --budget "
            f"{lasting(options, plan, costs, clock)} is long enough."
        )
    return told


def lasting(options: TryOptions, plan: Plan, costs: Costs, clock: Clock) -> str:
    """Return a budget in which every part is long enough to show something, such as "25min".

    It has pre-trainings of 200 steps, in their share of the budget, and as many seeds as an interval needs.
    """
    before = costs.before(plan, FEWEST_PRETRAINING)
    later = clock.spent() + costs.later(plan, min(FEWEST_DRAWN, options.seeds))
    minutes = math.ceil(MARGIN * max(before / PRETRAINING_SHARE, before + later) / 60)
    if minutes > ROUNDED_FROM_MINUTES:
        minutes = ROUNDED_TO_MINUTES * math.ceil(minutes / ROUNDED_TO_MINUTES)
    return f"{minutes}min"


def seconds_for(plan: Plan, costs: Costs, clock: Clock, *, left: int, seeds: int) -> float:
    """Return the budget of the next pre-training in seconds, at least 1.

    Args:
        plan: Plan of the comparison.
        costs: Costs of the smallest stages.
        clock: Seconds that were spent, including those of finished pre-trainings.
        left: Number of pre-trainings that are left.
        seeds: Number of seeds for which the smallest evaluation and fine-tuning keep their time.
    """
    runs = sum(clock.state["seconds"].get(one.name, 0.0) for one in plan.pretrainings)
    share = min(PRETRAINING_SHARE * clock.budget - runs, clock.left() - costs.later(plan, seeds))
    return max(float(share) / left - costs.run, 1.0)
