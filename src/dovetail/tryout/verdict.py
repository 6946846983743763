"""Results of `dovetail try`: a table and a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dovetail.downstream.table.results import Results, Row, one_value, over_seeds
from dovetail.downstream.table.verdict import Difference, paired, sentence
from dovetail.durations import in_words
from dovetail.run.budget import FEWEST_STEPS
from dovetail.run.folder import anchored, read_config
from dovetail.tryout.finetuning import SCORE
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import Clock, Plan, Start

HALF_SHOWN = 5e-5  # half a unit of the last digit in tables
SELECTION = (
    "The starts for fine-tuning were selected by frozen features on the same test images, so their gains may be "
    "slightly larger here than on new images. Each method was pre-trained once, so the seeds do not cover the variance "
    "of pre-training."
)


def results_of(
    options: TryOptions,
    plan: Plan,
    runs: Mapping[str, Path],
    frozen: Mapping[str | None, Mapping[str, float]],
    scores: Mapping[Start, Sequence[float]],
    clock: Clock,
    last: Results,
    *,
    commonest: float | None = None,
) -> Results:
    """Return the table, with the verdict in its notes.

    Args:
        options: Options of the command.
        plan: Plan of the comparison.
        runs: Folders of the pre-trainings by name.
        frozen: Scores of frozen features by run.
        scores: Scores of fine-tuning by start, one per seed.
        clock: Seconds that were spent.
        last: A fine-tuning result with data and device.
        commonest: The mIoU of predicting the commonest class everywhere, if known.
    """
    rows = [
        Row(
            {"start": start.title},
            {f"frozen {tap}": one_value(frozen[start.run][tap]) for tap in taps_of(start)}
            | ({f"fine-tuned {SCORE}": over_seeds(scores[start])} if start in scores else {}),
        )
        for start in plan.starts
    ]
    images = int(clock.state["train_images"])
    alone, *others = scores
    differences = {start: paired(scores[start], scores[alone]) for start in others}
    told = [
        sentence(found, start.title, alone.title, images=images, score=SCORE, more_seeds="use a longer --budget")
        for start, found in differences.items()
    ]
    notes = (
        *told,
        *too_short(runs),
        *without_features(plan.starts, frozen, commonest),
        conclusion(differences, alone, runs),
        f"Total time: {in_words(clock.spent())}.",
        SELECTION,
    )
    config = {
        name: anchored(name, str(value) if isinstance(value, Path) else value)
        for name, value in options.as_dict().items()
    }
    return Results("try", tuple(rows), config, {**last.data, "steps": clock.state["steps"]}, last.device, notes)


def too_short(runs: Mapping[str, Path]) -> list[str]:
    """Return a sentence if pre-trainings took so few steps that their results say little; else nothing."""
    steps = [int(read_config(folder)["max_steps"] or 0) for folder in runs.values()]
    if min(steps) >= FEWEST_STEPS:
        return []
    return [
        f"The budget allowed pre-trainings of {', '.join(f'{one:,}' for one in steps)} steps. Fewer than "
        f"{FEWEST_STEPS} steps say little about pre-training; use a longer --budget."
    ]


def without_features(
    starts: Sequence[Start], frozen: Mapping[str | None, Mapping[str, float]], commonest: float | None
) -> list[str]:
    """Return a sentence if frozen features score no more than predicting the commonest class everywhere does."""
    if commonest is None:  # evaluated by an older version
        return []
    every = {
        start.title if start.run is not None else f"{start.title}, {tap}": frozen[start.run][tap]
        for start in starts
        for tap in taps_of(start)
    }
    useless = [name for name, score in every.items() if score < commonest + HALF_SHOWN]
    alike = f"{100 * commonest:.2f} mIoU, which is the score of predicting the commonest class everywhere"
    if not useless:
        return []
    if len(useless) == len(every):
        return [f"No frozen features score more than {alike}, so they say nothing about the starts."]
    return [f"These frozen features score no more than {alike}, so they say nothing: {'; '.join(useless)}."]


def taps_of(start: Start) -> tuple[str, ...]:
    """Return the frozen features to show for a start: those it is compared by, or both without pre-training."""
    return (start.tap,) if start.run is not None else ("encoder", "decoder")


def conclusion(differences: Mapping[Start, Difference], alone: Start, runs: Mapping[str, Path]) -> str:
    """Return a recommendation, based on paired differences to the start without pre-training."""
    helped = {start: found for start, found in differences.items() if found.shown and found.mean > 0}
    if helped:
        best = max(helped, key=lambda start: helped[start].mean)
        return (
            f"Pre-training is worth it on these images: {best.title} gained most. Its weights are in "
            f"{runs[best.run or '']}; load them with dovetail.load_into, or pre-train longer with this method."
        )
    if any(found.half_width is None for found in differences.values()):
        return "There are too few seeds to decide whether pre-training is worth it; use a longer --budget."
    return (
        f"No significant gain of pre-training over {alone.title} was found on these images within this budget; start "
        f"from {alone.title}, or try again with a longer --budget or more test images."
    )
