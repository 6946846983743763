"""`--budget 30min`: a new run planned into a wall time, from steps that are timed on this machine.

Steps come first. Where even 200 do not fit, views become smaller, and the decoder's losses look at 196 sampled cells of
its map. A run is never longer than without a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dovetail.networks.network import Network
from dovetail.options import AUTO
from dovetail.recipes.table import options_of
from dovetail.run.choose import on_processor, takes_size
from dovetail.run.options import PretrainOptions

FEWEST_STEPS = 200
SHORT_STEPS = 1000  # at most, for the preset that is made for some hundred
SIDES_PX = (224, 160, 128, 96, 64)
SAMPLED_CELLS = 196
KEPT_SHARE = 0.9  # of the time for steps; the rest is for the start, checkpoints, the page and what a machine varies


@dataclass(frozen=True)
class Cost:
    """What a run of some options takes: seconds for a step, and steps where no budget ends it."""

    step_seconds: float
    natural_steps: int


Measure = Callable[[PretrainOptions], Cost]


def planned(
    options: PretrainOptions, network: Network, left: Callable[[], float], measure: Measure
) -> tuple[PretrainOptions, str]:
    """Return the options of a run that ends within its budget, and what was planned in one sentence.

    Args:
        options: With a method; epochs and steps are free.
        network: The model.
        left: Returns the seconds of the budget that are left.
        measure: Times a few steps of some options.
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
        if steps >= min(FEWEST_STEPS, cost.natural_steps):
            break
    size = f" on views of {found.image_size} px" if found.image_size else ""
    told = f"The budget of {options.budget} takes {steps:,} steps of {cost.step_seconds:.2g} s{size}."
    if steps < FEWEST_STEPS:
        told += " That is little: pre-training of fewer than 200 steps was not measured."
    return found.changed(max_steps=max(steps, 1), budget=None), told


def steps_within(cost: Cost, seconds: float) -> int:
    """Return the steps that fit, never more than the run has without a budget."""
    return min(int(KEPT_SHARE * seconds / cost.step_seconds), cost.natural_steps)


def candidates(options: PretrainOptions, network: Network) -> Iterator[PretrainOptions]:
    """Yield the options from the largest views to the smallest, then with sampled cells."""
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
    if "decoder_cells" in options_of(options.method) and not {"decoder_cells", "decoder_grid"} & given.keys():
        yield options.changed(recipe={**given, "decoder_cells": SAMPLED_CELLS})
