"""What was found, in a table and in a paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dovetail.downstream.table.results import Results, Row, one_value, over_seeds
from dovetail.downstream.table.verdict import Difference, paired, sentence
from dovetail.durations import in_words
from dovetail.run.folder import anchored
from dovetail.tryout.finetuning import SCORE
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import Clock, Plan, Start

SELECTION = (
    "The starts that were fine-tuned were chosen by frozen maps of the same test images, so their gains may be a "
    "little larger here than on new images; and there is one pre-training of each kind, whose own chance the seeds do "
    "not cover."
)


def results_of(
    options: TryOptions,
    plan: Plan,
    runs: Mapping[str, Path],
    frozen: Mapping[str | None, Mapping[str, float]],
    scores: Mapping[Start, Sequence[float]],
    clock: Clock,
    last: Results,
) -> Results:
    """Return the table with the verdict as its notes; `last` is of a fine-tuning, and says data and device."""
    rows = [
        Row(
            {"start": start.title},
            {f"frozen {start.tap}": one_value(frozen[start.run][start.tap])}
            | ({f"fine-tuned {SCORE}": over_seeds(scores[start])} if start in scores else {}),
        )
        for start in plan.starts
    ]
    images = int(clock.state["train_images"])
    alone, *others = scores
    differences = {start: paired(scores[start], scores[alone]) for start in others}
    told = [
        sentence(found, start.title, alone.title, images=images, score=SCORE) for start, found in differences.items()
    ]
    notes = (*told, conclusion(differences, alone, runs), f"All of it took {in_words(clock.spent())}.", SELECTION)
    config = {
        name: anchored(name, str(value) if isinstance(value, Path) else value)
        for name, value in options.as_dict().items()
    }
    return Results("try", tuple(rows), config, {**last.data, "steps": clock.state["steps"]}, last.device, notes)


def conclusion(differences: Mapping[Start, Difference], alone: Start, runs: Mapping[str, Path]) -> str:
    """Return what to do, from paired differences to the start without pre-training."""
    helped = {start: found for start, found in differences.items() if found.shown and found.mean > 0}
    if helped:
        best = max(helped, key=lambda start: helped[start].mean)
        return (
            f"Pre-training is worth it on these images: {best.title} helped most, and its weights are in "
            f"{runs[best.run or '']}; go on from there with a longer budget, or load them with dovetail.load_into."
        )
    if any(found.half_width is None for found in differences.values()):
        return "There were too few seeds to tell whether pre-training is worth it; give a longer --budget."
    return (
        f"Within this budget no gain of pre-training over {alone.title} can be shown on these images; start from "
        f"{alone.title}, or try again with a longer --budget or more test images."
    )
