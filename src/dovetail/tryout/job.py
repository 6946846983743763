"""`try_out`, the function behind `dovetail try`: pre-train in several ways, measure frozen, fine-tune the best, say it.

Everything lies in one folder: a run for each pre-training, `frozen/`, `finetune/`, results.json, report.html. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.durations import in_words, seconds_in
from dovetail.errors import Interrupted
from dovetail.options import takes
from dovetail.tryout.options import TryOptions

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results
    from dovetail.tryout.plan import Clock, Plan, Start

BEST = 2  # starts that are fine-tuned beside the one without pre-training
FROZEN = ("encoder", "decoder")


@takes(TryOptions)
def try_out(options: TryOptions) -> Results:
    """Say within a wall time whether pre-training is worth it on one's own images, and which.

    A base method, DeCon over it and, from trained weights, encoder targets pre-train one model. Frozen maps are
    measured for all of them, the best two starts and the one without pre-training are fine-tuned with the same seeds,
    and the differences are judged seed by seed.

    Returns:
        The results: a row for each start, and the verdict among the notes.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    options.check_complete()
    from dovetail.files.locking import in_use
    from dovetail.files.writable import check_writable
    from dovetail.tryout.plan import Clock, plan_of

    out = Path(options.out)
    check_writable(out)
    with in_use(out), stopping_in(out):
        clock = Clock(out, seconds_in(options.budget))
        plan = plan_of(options)
        methods = ", ".join(one.method for one in plan.pretrainings)
        print(
            f"{plan.model} from {plan.starts[0].title}, {options.budget}: {methods}; then frozen maps, then the best."
        )
        runs = pretrained(options, plan, clock, out)
        frozen = measured_frozen(options, plan, runs, clock, out)
        picked = best_starts(plan, frozen)
        print(f"Best frozen maps: {', '.join(one.title for one in picked[1:])}; fine-tuning from them.", flush=True)
        return finished(options, plan, runs, frozen, picked, clock, out)


@contextmanager
def stopping_in(out: Path) -> Iterator[None]:
    """Say in one sentence that the same command goes on, whatever part of it was stopped.

    Raises:
        Interrupted: After Ctrl-C, or a signal that ends a job or a terminal.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.signal_number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(
            f"Stopped by {signal.Signals(number).name}; what is finished is kept in {out}, and the same command goes "
            "on after it.",
            signal_number=number,
        ) from None


def pretrained(options: TryOptions, plan: Plan, clock: Clock, out: Path) -> dict[str, Path]:
    """Pre-train in every way that is not done yet and return the folders by name."""
    from dovetail.run.folder import CONFIG
    from dovetail.run.network import EXPORTED
    from dovetail.run.pretrain import pretrain
    from dovetail.tryout.plan import PRETRAINING_SHARE
    from dovetail.weights.exported import MODEL_FILE

    seconds = PRETRAINING_SHARE * clock.budget / len(plan.pretrainings)
    runs: dict[str, Path] = {}
    for one in plan.pretrainings:
        folder = runs[one.name] = out / one.name
        if (folder / EXPORTED / MODEL_FILE).is_file():
            continue
        print(f"\n{one.method}, {in_words(seconds)}", flush=True)
        with clock.stage(one.name):
            if (folder / CONFIG).is_file():
                pretrain(data=str(options.data), out=folder, resume=True)
            else:
                pretrain(
                    data=str(options.data),
                    model=plan.model,
                    method=one.method,
                    init=plan.init,
                    image_size=options.image_size,
                    seed=options.seed,
                    budget=f"{max(seconds, 1):.0f}s",
                    out=folder,
                )
    return runs


def measured_frozen(
    options: TryOptions, plan: Plan, runs: Mapping[str, Path], clock: Clock, out: Path
) -> dict[str | None, dict[str, float]]:
    """Return the mIoU of frozen maps by a linear classifier, {run: {encoder or decoder: share}}; None is no run."""
    from dovetail.downstream.evaluate import evaluate_dense
    from dovetail.downstream.table.results import RESULTS, read_results
    from dovetail.weights.exported import read_exported

    side = int(read_exported(next(iter(runs.values()))).info["image_size"])
    found: dict[str | None, dict[str, float]] = {}
    subjects: list[tuple[str | None, Path | None]] = [(None, None), *runs.items()]
    for name, run in subjects:
        folder = out / "frozen" / (name or "none")
        if not (folder / RESULTS).is_file():
            subject: dict[str, Any] = {"model": plan.model, "init": plan.init} if run is None else {"run": run}
            with clock.stage(f"frozen {name or 'none'}"):
                evaluate_dense(
                    data=options.labels,
                    at=FROZEN,
                    protocols=["linear"],
                    lr=[0.01, 0.1, 1.0],
                    weight_decay=[1e-4],
                    steps=200,
                    image_size=side,
                    classes=options.classes,
                    seed=options.seed,
                    out=folder,
                    **subject,
                )
        rows = read_results(folder).rows
        found[name] = {at: row.scores["mIoU"].mean for at, row in zip(FROZEN, rows, strict=True)}
    return found


def best_starts(plan: Plan, frozen: Mapping[str | None, Mapping[str, float]]) -> list[Start]:
    """Return the start without pre-training and those whose frozen map gained most over the same one's."""
    alone, *others = plan.starts

    def gain(start: Start) -> float:
        return frozen[start.run][start.tap] - frozen[None][start.tap]

    return [alone, *sorted(others, key=gain, reverse=True)[:BEST]]


def finished(
    options: TryOptions,
    plan: Plan,
    runs: Mapping[str, Path],
    frozen: Mapping[str | None, Mapping[str, float]],
    picked: list[Start],
    clock: Clock,
    out: Path,
) -> Results:
    """Fine-tune, judge, and write results.json and the page."""
    from dovetail.report.compare_page import write_comparison
    from dovetail.tryout.finetuning import FineTuning, steps_for
    from dovetail.tryout.verdict import results_of

    tuning = FineTuning(options, runs, out / "finetune")
    if "steps" not in clock.state:  # what was planned holds when the command goes on
        with clock.stage("timing"):
            trial = tuning.timed(picked[0])
        clock.state |= {
            "steps": steps_for(trial, starts=len(picked), seconds=clock.left()),
            "train_images": trial.train_images,
        }
        clock.save()
    steps = int(clock.state["steps"])
    print(f"\nFine-tuning takes {steps:,} steps a trial; {in_words(max(clock.left(), 1))} are left.", flush=True)
    scores = tuning.rounds(picked, steps, clock)
    assert tuning.last is not None  # one seed at least was run
    results = results_of(options, plan, runs, frozen, scores, clock, tuning.last)
    page = out / "report.html"
    write_comparison(page, {"try": list(results.rows)}, results.notes, list(runs.values()))
    results.write(out)
    print(page)
    return results
