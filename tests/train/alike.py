"""Whether two runs ended in the same weights, although rounding alone moves some of them."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dovetail.train.checkpoints import Checkpoints
from dovetail.train.learner import Learner
from dovetail.train.optimisers import build_optimiser, rule_names
from tests.train.ranks import learner_of

ROUNDING = 1e-12  # of gradients in double precision, which is below 1e-15; those of other weights are above 1e-9


def newest(run: Path) -> dict[str, Any]:
    """Return a run's newest checkpoint."""
    state = Checkpoints(run / "checkpoints").load()
    assert state is not None
    return state


def assert_alike(one: Path, other: Path, method: str) -> None:
    """Assert that two runs of a method ended in the same weights, queues and centres."""
    assert_same_state(newest(one), newest(other), places_without_effect(method))


def assert_same_state(expected: dict[str, Any], found: dict[str, Any], places: dict[str, int]) -> None:
    """Assert that two checkpoints hold the same weights; of `places_without_effect`, what is defined of them.

    The gradient of such a weight is zero but for rounding. AdamW divides it by its own size plus 1e-8, and so moves
    the weight millions of times as far as it was rounded, differently on every processor. What is defined is that the
    gradients were zero, which their mean in AdamW's state tells. LARS and SGD move such a weight by rounding alone, so
    that it is compared like all others.
    """
    assert expected["learner"].keys() == found["learner"].keys()
    for name, value in expected["learner"].items():
        kept = [state["optimiser"]["state"].get(places.get(name), {}) for state in (expected, found)]
        if all("exp_avg" in one for one in kept):
            assert max(float(one["exp_avg"].abs().max()) for one in kept) < ROUNDING, f"{name} has a gradient"
        else:
            torch.testing.assert_close(
                found["learner"][name], value, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
            )


@functools.cache
def places_without_effect(method: str) -> dict[str, int]:
    """Return the trained weights that change nothing in training, with their number in the optimiser's state.

    These are the biases directly before a BatchNorm, which subtracts the mean and thus the bias.
    """
    learner = learner_of(method)
    optimiser = build_optimiser(rule_names(learner), learner.recipe.optimiser, learner.lr_scale)
    numbers = {id(weight): number for number, weight in enumerate(parameters_of(optimiser))}
    without = {id(bias) for bias in biases_before_batch_norm(learner)}
    return {name: numbers[id(one)] for name, one in learner.named_parameters() if id(one) in without & numbers.keys()}


def parameters_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return an optimiser's parameters in the order of its state."""
    return [weight for group in optimiser.param_groups for weight in group["params"]]


def biases_before_batch_norm(learner: Learner) -> list[nn.Parameter]:
    """Return the biases of layers whose output goes to a BatchNorm and nowhere else."""
    chains = (list(part) for part in learner.modules() if isinstance(part, nn.Sequential))
    return [
        layer.bias
        for chain in chains
        for layer, norm in itertools.pairwise(chain)
        if isinstance(layer, (nn.Linear, _ConvNd)) and layer.bias is not None and isinstance(norm, _BatchNorm)
    ]
