"""A learner with quirks of official code, for comparison."""

from __future__ import annotations

import re
from dataclasses import replace

from dovetail.networks.network import Network
from dovetail.recipe import Recipe
from dovetail.schedules import Moment
from dovetail.train.learner import Learner


class ReferenceLearner(Learner):
    """A learner whose teacher is updated as in DeCon's official code (arXiv 2503.17526), depending on the recipe.

    `Recipe.reference_double_momentum_counter`: the official counter advances once for the encoder and once for the
    decoder, so twice per step. The momentum reaches 1 at half of the run and falls back to its start.
    `Recipe.reference_frozen_teacher`: parameters that match this regular expression are never updated.
    """

    def momentum(self, moment: Moment) -> float:
        """Return the momentum of the teacher's encoder at `moment`."""
        return self.momentum_of_part(moment, decoder=False)

    def momentum_of_part(self, moment: Moment, *, decoder: bool) -> float:
        """Return the momentum of the teacher's decoder, or of the rest, at `moment`."""
        if self.recipe.reference_double_momentum_counter:
            moment = replace(moment, step=2 * moment.step + int(decoder))
        return super().momentum(moment)

    def move_parameters(self, moment: Moment) -> None:
        """Update encoder and decoder with separate momenta, without the frozen parameters."""
        frozen = self.recipe.reference_frozen_teacher
        moving = [name for name, _ in self.student.named_parameters() if not (frozen and re.search(frozen, name))]
        for decoder in (False, True):
            names = [name for name in moving if self.in_decoder(name) is decoder]
            self.average(names, self.momentum_of_part(moment, decoder=decoder))


def build_learner(recipe: Recipe, network: Network) -> Learner:
    """Return the learner of a recipe: a `ReferenceLearner` if the recipe sets a quirk of the teacher."""
    asks = recipe.reference_double_momentum_counter or recipe.reference_frozen_teacher is not None
    return ReferenceLearner(recipe, network) if asks else Learner(recipe, network)
