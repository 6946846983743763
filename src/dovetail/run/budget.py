"""`--budget 30min`: plans a new run that fits into a wall time, based on steps that are timed on this machine.

The number of steps is reduced first. If not even 200 steps fit, the views become smaller, and then the decoder's losses
use 196 sampled cells of its map. A budget never makes a run longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dovetail.errors import counted
from dovetail.networks.network import Network
from dovetail.options import AUTO
from dovetail.recipes import presets
from dovetail.recipes.table import options_of
from dovetail.run.choose import SHORT_STEPS, on_processor, takes_size
from dovetail.run.options import PretrainOptions
from dovetail.sizes import size_in_words

FEWEST_STEPS = 200
SIDES_PX = (224, 160, 128, 96, 64)
SAMPLED_CELLS = 196
KEPT_SHARE = 0.9  # fraction of the time for steps; the rest is for start-up, checkpoints, the page and variance


@dataclass(frozen=True)
class Cost:
    """The cost of a run: seconds per step, and its number of steps without a budget."""

    step_seconds: float
    natural_steps: int


Measure = Callable[[PretrainOptions], Cost]


def planned(
    options: PretrainOptions, network: Network, left: Callable[[], float], measure: Measure
) -> tuple[PretrainOptions, str]:
    """Return the options of a run that fits into its budget, and a sentence that describes the plan.

    Args:
        options: Options with a method. Epochs and steps are replaced.
        network: Network of the run.
        left: Returns the remaining seconds of the budget.
        measure: Times a few steps of a run with the options.
    """
    found, steps = options, 0
    for found in candidates(options, network):
        cost = measure(found)
        steps = steps_within(cost, left())
        if found.preset == "short" and options.preset == AUTO and steps > SHORT_STEPS:
            slower = measure(found.changed(preset=AUTO))
            longer = steps_within(slower, left())
            if longer > SHORT_STEPS:
                found, cost, steps = found.changed(preset=AUTO), slower, longer
        if steps >= min(FEWEST_STEPS, cost.natural_steps) or left() <= 0:
            break
    size = f" on views of {size_in_words(found.image_size)} px" if found.image_size else ""
    each = f"timed at {cost.step_seconds:.2g} s each" if steps != 1 else f"timed at {cost.step_seconds:.2g} s"
    told = f"The budget of {options.budget} allows {counted(steps, 'step')}{size}, {each}."
    if steps == 0:
        told = (
            f"Timing the steps ({cost.step_seconds:.2g} s each{size}) used up the budget of {options.budget}, so the "
            "run takes a single step; use a longer --budget."
        )
    elif steps < FEWEST_STEPS:
        told += " This is very short: runs of fewer than 200 steps were not evaluated."
    return found.changed(max_steps=max(steps, 1), budget=None), told


def steps_within(cost: Cost, seconds: float) -> int:
    """Return the number of steps that fit, which never exceeds the number without a budget."""
    return max(min(int(KEPT_SHARE * seconds / cost.step_seconds), cost.natural_steps), 0)


def candidates(options: PretrainOptions, network: Network) -> Iterator[PretrainOptions]:
    """Yield options with decreasing view sizes, then with sampled cells."""
    if options.preset == AUTO and on_processor(options):
        options = options.changed(preset="short")
    sides = SIDES_PX[2:] if on_processor(options) else SIDES_PX
    fitting = [side for side in sides if takes_size(options, network, side)]
    for side in fitting:
        options = options.changed(image_size=side)
        yield options
    if not fitting:
        yield options
    given = options.recipe or {}
    sampled = options.preset != "auto" and presets.options(options.preset, options.method).get("decoder_cells")
    if sampled == SAMPLED_CELLS:
        return  # the last candidate would be the same run again
    if "decoder_cells" in options_of(options.method) and not {"decoder_cells", "decoder_grid"} & given.keys():
        yield options.changed(recipe={**given, "decoder_cells": SAMPLED_CELLS})
