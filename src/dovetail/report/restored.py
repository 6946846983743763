"""A run read back from its folder: its recipe, the network that it began with, and all that it has learned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dovetail.errors import OptionsError, RunError
from dovetail.networks.initialise import is_downloaded
from dovetail.networks.network import Network
from dovetail.provenance import refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes.table import build, with_later_options
from dovetail.run.folder import CONFIG, saved_options
from dovetail.run.network import begin_random, network_for, normalised_recipe, starting_weights
from dovetail.run.options import PretrainOptions
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.learner import Branch, Learner
from dovetail.train.reference import build_learner
from dovetail.weights.start import begin_from


@dataclass(frozen=True)
class Restored:
    """A run, read back.

    Attributes:
        folder: Of the run.
        options: Its resolved parameters.
        recipe: Its recipe.
        start: The network that it began with: that of the same seed, or of the weights it started from; None where
            these would have to be downloaded.
        learner: Everything it has learned, from its newest checkpoint.
        step: Optimiser steps done by then.
    """

    folder: Path
    options: PretrainOptions
    recipe: Recipe
    start: Network | None
    learner: Learner
    step: int

    @property
    def before(self) -> Network:
        """The network that it began with; raises `DovetailError` where its weights would have to be downloaded."""
        if self.start is None:
            refuse_network_in_file("init", self.options.init, typed=False)
        assert self.start is not None
        return self.start

    @property
    def branch(self) -> Branch:
        """The branch that the run exports: network and heads."""
        teacher = self.learner.teacher
        return teacher if self.recipe.export == "teacher" and teacher is not None else self.learner.student

    @property
    def after(self) -> Network:
        """The network as it is now."""
        return self.branch.network

    @property
    def steps(self) -> str:
        """Optimiser steps done, in words: "1 step", "1,480 steps"."""
        return f"{self.step:,} step{'' if self.step == 1 else 's'}"

    @property
    def side_px(self) -> int:
        """Side of the run's first view."""
        return self.recipe.views.views[0].size_px

    @property
    def in_channels(self) -> int:
        """Channels of the pixels."""
        return self.options.in_channels


def restore(run: str | Path, *, model: nn.Module | None = None, init: str | None = None) -> Restored:
    """Read a run's folder.

    Args:
        run: The folder.
        model: For a run whose model was given in Python: the same module again.
        init: "imagenet" allows the download of the weights that a run with this `init` began with.

    Raises:
        DovetailError: For a folder without a run or a checkpoint, and for a module that is not given again.
    """
    folder = Path(run)
    if not (folder / CONFIG).is_file():
        raise RunError(f"There is no run in {folder}: it has no {CONFIG}; give the folder of --out.")
    saved = saved_options(folder)
    if model is not None:
        saved["model"] = model
    options = PretrainOptions.given(saved).changed(resume=True)
    if options.model is None:
        raise OptionsError(f"The model of {folder} was given in Python; give the same module with model=.")
    state = Checkpoints(folder / "checkpoints").load()
    if state is None:
        raise RunError(
            f"The run in {folder} has no checkpoint yet; wait until it has saved one, or resume it if it was stopped."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        before = network_for(options)
        known = options.init in (None, init) or not is_downloaded(before, options.init)
        if known:
            begin_from(before, starting_weights(options.init))
        chosen = with_later_options(options.method, options.recipe or {}, resume=True)
        recipe = build(options.method, before.taps, chosen)
        recipe = normalised_recipe(recipe, before, options)
        begin_random(before, recipe, options)
        before = before.following(recipe.network_rules)
        learner = build_learner(recipe, copy.deepcopy(before))
    try:
        learner.load_state_dict(state["learner"])
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"The checkpoint in {folder} does not fit its config.yaml; was it written by another version?"
        ) from error
    return Restored(folder, options, recipe, before if known else None, learner.eval(), int(state["step"]))
