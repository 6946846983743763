"""Times the smallest version of each stage of `dovetail try`, before the first stage begins.

A pre-training of one step, the evaluation of its frozen features and two short fine-tunings are run in a temporary
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
from dovetail.durations import in_words
from dovetail.report.history import read_history
from dovetail.run.folder import read_config
from dovetail.run.pretrain import pretrain
from dovetail.run.timing import TIMED, WARM_UP
from dovetail.sizes import Size, as_size
from dovetail.tryout.finetuning import FEWEST_STEPS, FineTuning, Trial
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import BEST, PRETRAINING_SHARE, Clock, Plan
from dovetail.weights.exported import read_exported

FROZEN = ("encoder", "decoder")
MARGIN = 1.2  # of the recommended budget over the expected time, since the speed of a machine varies


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

    def later(self, plan: Plan) -> float:
        """Return the seconds of the smallest evaluation and fine-tuning after all pre-trainings."""
        tuned = min(len(plan.starts), 1 + BEST)
        trial = self.trial.other_seconds + FEWEST_STEPS * self.trial.step_seconds
        return (1 + len(plan.pretrainings)) * self.frozen + tuned * trial

    def least(self, plan: Plan) -> float:
        """Return the seconds of the smallest comparison: pre-trainings of one step, and one seed of fine-tuning."""
        steps = WARM_UP + TIMED + 1  # the budget of a run is planned with timed steps
        return len(plan.pretrainings) * (self.run + steps * self.step) + self.later(plan)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the state file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Costs:
        """Return the costs from the result of `as_dict`."""
        return cls(**{**values, "trial": Trial(**values["trial"]), "image_size": as_size(values["image_size"])})


def rehearsed(options: TryOptions, plan: Plan) -> Costs:
    """Run the smallest version of each stage in a temporary folder, and return its costs.

    Raises:
        DovetailError: A stage cannot be carried out, for example because the labels cannot be read.
    """
    with TemporaryDirectory() as folder, silenced():
        out = Path(folder)
        first = plan.pretrainings[0]
        began = time.perf_counter()
        pretrain(
            data=str(options.data),
            model=plan.model,
            method=first.method,
            preset=first.preset,
            init=plan.init,
            image_size=options.image_size,
            seed=options.seed,
            max_steps=1,
            out=out / "run",
        )
        run = time.perf_counter() - began
        size = as_size(read_exported(out / "run").info["image_size"])
        tuning = FineTuning(options, {first.name: out / "run"}, out / "finetune")
        trial = tuning.timed(plan.starts[0])
        began = time.perf_counter()
        evaluate_frozen(options, out / "frozen", size, run=out / "run")
        frozen = time.perf_counter() - began
        step = seconds_of_step(out / "run")
        return Costs(max(run - step, 0.0), step, frozen, trial, size)


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
    """Return a sentence on what the budget allows, or on what the smallest comparison takes if it does not fit."""
    total = clock.spent() + costs.least(plan)
    if total > clock.budget:
        return (
            f"The smallest comparison takes about {in_words(total)} on these images, which is more than the budget of "
            f"{options.budget}; it runs nevertheless, and --budget {math.ceil(MARGIN * total / 60)}min would hold."
        )
    each = seconds_for(plan, costs, clock, left=len(plan.pretrainings))
    later = clock.left() - len(plan.pretrainings) * (each + costs.run)
    return (
        f"Of the budget of {options.budget}, {in_words(clock.spent())} were taken by timing; each pre-training gets "
        f"about {in_words(each)}, and evaluation and fine-tuning about {in_words(later)}."
    )


def seconds_for(plan: Plan, costs: Costs, clock: Clock, *, left: int) -> float:
    """Return the budget of the next pre-training in seconds, at least 1.

    Args:
        plan: Plan of the comparison.
        costs: Costs of the smallest stages.
        clock: Seconds that were spent, including those of finished pre-trainings.
        left: Number of pre-trainings that are left.
    """
    runs = sum(clock.state["seconds"].get(one.name, 0.0) for one in plan.pretrainings)
    share = min(PRETRAINING_SHARE * clock.budget - runs, clock.left() - costs.later(plan))
    return max(float(share) / left - costs.run, 1.0)
