"""`try_out`, the function behind `dovetail try`: pre-trains, evaluates frozen features, fine-tunes, and judges.

All results are in one folder: a run for each pre-training, `frozen/`, `finetune/`, results.json and report.html. The
same command resumes where it was stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.durations import in_words, seconds_in
from dovetail.errors import DovetailError, Interrupted
from dovetail.files.writable import check_writable
from dovetail.options import takes
from dovetail.sizes import as_size, size_in_words
from dovetail.train.interrupts import signal_name
from dovetail.tryout.options import TryOptions

if TYPE_CHECKING:
    from dovetail.downstream.table.results import Results
    from dovetail.tryout.plan import Clock, Plan, Start
    from dovetail.tryout.rehearsal import Costs


def check_early(options: TryOptions) -> None:
    """Raise `DovetailError` for missing options and a folder that is not writable.

    The command line calls it before PyTorch is imported.
    """
    options.check_complete()
    check_writable(Path(options.out))


@takes(TryOptions)
def try_out(options: TryOptions) -> Results:
    """Measure within a time budget whether pre-training is worth it on your images, and which method is best.

    One model is pre-trained with a base method, with DeCon on top of it and, if it starts from trained weights, with
    encoder-targets. The frozen feature maps of all runs are evaluated. Then the best two starts and the one without
    pre-training are fine-tuned with the same seeds, and the differences are compared seed by seed.

    Returns:
        The results: a row for each start. The notes contain the verdict.

    Raises:
        DovetailError: An option is invalid, or a step cannot be carried out.
    """
    check_early(options)
    began = time.monotonic()
    from dovetail.files.locking import in_use
    from dovetail.tryout.plan import Clock, plan_of

    out = Path(options.out)
    with in_use(out), stopping_in(out):
        clock = Clock(out, seconds_in(options.budget))
        with clock.stage("planning", began=began):
            plan = plan_of(options)
        methods = ", ".join(one.method for one in plan.pretrainings)
        print(
            f"{plan.model} from {plan.starts[0].title}, {options.budget}: pre-training with {methods}, then evaluation "
            "of frozen features, then fine-tuning of the best.",
            flush=True,
        )
        costs = costs_of(options, plan, clock)
        runs = pretrained(options, plan, costs, clock, out)
        frozen = measured_frozen(options, plan, runs, clock, out)
        picked = best_starts(plan, frozen)
        print(f"Best frozen features: {'; '.join(one.title for one in picked[1:])}. Fine-tuning them.", flush=True)
        return finished(options, plan, runs, frozen, picked, costs, clock, out)


def costs_of(options: TryOptions, plan: Plan, clock: Clock) -> Costs:
    """Return the costs of the smallest stages, and print what the budget allows. A resumed command keeps them.

    Raises:
        RunError: The budget is too short to show anything, and no pre-training has begun.
    """
    from dovetail.tryout.rehearsal import Costs, about_budget, rehearsed

    if "costs" in clock.state:
        try:
            costs = Costs.from_dict(clock.state["costs"])
        except (TypeError, KeyError, DovetailError) as error:
            raise clock.unreadable(error) from error
    else:
        print("Timing the parts of the comparison, usually in one or two minutes:", flush=True)
        with clock.stage("timing"):
            costs = rehearsed(options, plan)
        clock.state["costs"] = costs.as_dict()
        clock.save()
    if not any(one.name in clock.state["seconds"] for one in plan.pretrainings):
        print(about_budget(options, plan, costs, clock), flush=True)
    return costs


@contextmanager
def stopping_in(out: Path) -> Iterator[None]:
    """Convert an interruption to an error that says how to resume.

    Raises:
        Interrupted: After Ctrl-C, or a signal that ends a job or a terminal.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        number = error.signal_number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(
            f"Stopped by {signal_name(number)}; what is finished is kept in {out}, and the same command goes "
            "on after it.",
            signal_number=number,
        ) from None


def pretrained(options: TryOptions, plan: Plan, costs: Costs, clock: Clock, out: Path) -> dict[str, Path]:
    """Carry out the remaining pre-trainings and return their folders by name."""
    from dovetail.run.folder import CONFIG
    from dovetail.run.network import EXPORTED
    from dovetail.run.options import PretrainOptions
    from dovetail.run.pretrain import pretrain_with
    from dovetail.tryout.rehearsal import FEWEST_SEEDS, seconds_for
    from dovetail.weights.exported import MODEL_FILE

    runs = {one.name: out / one.name for one in plan.pretrainings}
    seeds = min(FEWEST_SEEDS, options.seeds)
    remaining = [one for one in plan.pretrainings if not (runs[one.name] / EXPORTED / MODEL_FILE).is_file()]
    for index, one in enumerate(remaining):
        folder = runs[one.name]
        seconds = seconds_for(plan, costs, clock, left=len(remaining) - index, seeds=seeds)
        print(f"\n{one.method}, {in_words(seconds)}", flush=True)
        asked: dict[str, Any] = {"data": str(options.data), "out": folder}
        if (folder / CONFIG).is_file():
            asked["resume"] = True
        else:
            asked |= {
                "model": plan.model,
                "method": one.method,
                "preset": one.preset,
                "init": plan.init,
                "image_size": options.image_size,
                "seed": options.seed,
                "budget": f"{seconds:.0f}s",
            }
        with clock.stage(one.name):
            pretrain_with(PretrainOptions.given(asked), settings=one is plan.pretrainings[0], ending=False)
        print(f"Its weights are in {folder / EXPORTED}.", flush=True)
    return runs


def measured_frozen(
    options: TryOptions, plan: Plan, runs: Mapping[str, Path], clock: Clock, out: Path
) -> dict[str | None, dict[str, float]]:
    """Evaluate frozen features with a linear classifier: {run: {"encoder" or "decoder": mIoU}}. None is no run."""
    from dovetail.downstream.table.results import RESULTS, read_results
    from dovetail.tryout.rehearsal import FROZEN, evaluate_frozen
    from dovetail.weights.exported import read_exported

    size = as_size(read_exported(next(iter(runs.values()))).info["image_size"])
    methods = {one.name: one.method for one in plan.pretrainings}
    found: dict[str | None, dict[str, float]] = {}
    subjects: list[tuple[str | None, Path | None]] = [(None, None), *runs.items()]
    for name, run in subjects:
        folder = out / "frozen" / (name or "none")
        print(f"\nFrozen features of {methods.get(name or '', plan.starts[0].title)}", flush=True)
        if not (folder / RESULTS).is_file():
            subject: dict[str, Any] = {"model": plan.model, "init": plan.init} if run is None else {"run": run}
            # Its table and its advice on options are those of another command.
            with clock.stage(f"frozen {name or 'none'}"), redirect_stdout(StringIO()):
                evaluate_frozen(options, folder, size, **subject)
        rows = read_results(folder).rows
        found[name] = {at: row.scores["mIoU"].mean for at, row in zip(FROZEN, rows, strict=True)}
        print(f"mIoU in %: {', '.join(f'{at} {100 * score:.2f}' for at, score in found[name].items())}", flush=True)
    return found


def best_starts(plan: Plan, frozen: Mapping[str | None, Mapping[str, float]]) -> list[Start]:
    """Return the start without pre-training and the starts whose frozen features gained most over it."""
    from dovetail.tryout.plan import BEST

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
    costs: Costs,
    clock: Clock,
    out: Path,
) -> Results:
    """Fine-tune, judge the results, and write results.json and the page."""
    from dovetail.downstream.table.results import read_results
    from dovetail.report.compare_page import write_comparison
    from dovetail.tryout.finetuning import FineTuning, steps_for
    from dovetail.tryout.verdict import results_of

    tuning = FineTuning(options, runs, out / "finetune")
    if "steps" not in clock.state:  # a resumed command keeps its plan
        trial = costs.trial
        if tuning.crop_size != costs.image_size:
            print(f"Timing fine-tunings on crops of {size_in_words(tuning.crop_size)} px …", flush=True)
            with clock.stage("timing"):
                trial = tuning.timed(picked[0])
        clock.state |= {
            "steps": steps_for(trial, starts=len(picked), seconds=clock.left()),
            "train_images": trial.train_images,
        }
        clock.save()
    steps = int(clock.state["steps"])
    print(f"\nFine-tuning with {steps:,} steps per trial; {clock.left_in_words()}.", flush=True)
    scores = tuning.rounds(picked, steps, clock)
    assert tuning.last is not None  # at least one seed was run
    commonest = read_results(out / "frozen" / "none").details.get("commonest_class_miou")
    results = results_of(options, plan, runs, frozen, scores, clock, tuning.last, commonest=commonest)
    page = out / "report.html"
    title = "Is pre-training worth it on these images?"
    tables = {"scores": list(results.rows)}
    write_comparison(page, tables, (), list(runs.values()), title=title, verdict=results.notes)
    results.write(out)
    print(page)
    return results
