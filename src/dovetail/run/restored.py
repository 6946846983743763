"""Restores a run from its folder: its recipe, its initial network, and its trained weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dovetail.errors import OptionsError, RunError
from dovetail.files.missing import about_missing
from dovetail.networks.initialise import is_downloaded
from dovetail.networks.network import Network
from dovetail.provenance import refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes.table import build, with_later_options
from dovetail.run.folder import CONFIG, saved_options
from dovetail.run.network import begin_random, network_for, normalised_recipe, starting_weights
from dovetail.run.options import PretrainOptions
from dovetail.sizes import Size
from dovetail.train.checkpoints import Checkpoints, check_state, read
from dovetail.train.learner import Branch, Learner
from dovetail.train.reference import build_learner
from dovetail.weights.start import begin_from


@dataclass(frozen=True)
class Restored:
    """A restored run.

    Attributes:
        folder: Run folder.
        options: Resolved options.
        recipe: Recipe of the run.
        start: Initial network, built from the seed and the starting weights. None if these would have to be downloaded.
        learner: Trained learner from the newest checkpoint.
        step: Optimiser step of the checkpoint.
    """

    folder: Path
    options: PretrainOptions
    recipe: Recipe
    start: Network | None
    learner: Learner
    step: int

    @property
    def before(self) -> Network:
        """The initial network. Raises `DovetailError` if its weights would have to be downloaded."""
        if self.start is None:
            refuse_network_in_file("init", self.options.init, typed=False)
        assert self.start is not None
        return self.start

    @property
    def branch(self) -> Branch:
        """The branch that the run exports, with network and heads."""
        teacher = self.learner.teacher
        return teacher if self.recipe.export == "teacher" and teacher is not None else self.learner.student

    @property
    def after(self) -> Network:
        """The trained network."""
        return self.branch.network

    @property
    def steps(self) -> str:
        """Number of optimiser steps as text, such as "1,480 steps"."""
        return f"{self.step:,} step{'' if self.step == 1 else 's'}"

    @property
    def size_px(self) -> Size:
        """Size of the first view in pixels."""
        return self.recipe.views.views[0].size_px

    @property
    def in_channels(self) -> int:
        """Number of channels of the images."""
        return self.options.in_channels


def restore(
    run: str | Path, *, model: Any = None, init: str | None = None, checkpoint: str | Path = "last"
) -> Restored:
    """Restore a run.

    Args:
        run: Run folder.
        model: The module of the run, or its import path, if the run has a custom module.
        init: "imagenet" allows the download of the starting weights, for a run with this `init`.
        checkpoint: "last" for the newest intact checkpoint, or the path of a checkpoint.

    Raises:
        DovetailError: The folder contains no run or no checkpoint, or `model` is missing.
    """
    folder = Path(run)
    if not (folder / CONFIG).is_file():
        if not folder.exists():
            raise RunError(f"There is no run at {str(folder)!r}; {about_missing(folder)}")
        raise RunError(f"{folder} contains no run ({CONFIG} is missing); specify the --out folder of a run.")
    saved = saved_options(folder)
    if model is not None:
        saved["model"] = model
    options = PretrainOptions.given(saved).changed(resume=True)
    if options.model is None:
        raise OptionsError(f"The model of {folder} was passed in Python; pass the same module as model=.")
    state = state_of(folder, checkpoint)
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
            f"The checkpoint in {folder} does not fit its config.yaml; use the version of Dovetail that wrote it."
        ) from error
    return Restored(folder, options, recipe, before if known else None, learner.eval(), int(state["step"]))


def state_of(folder: Path, checkpoint: str | Path) -> dict[str, Any]:
    """Return the state in a run's newest checkpoint for "last", or in the checkpoint at a path.

    Raises:
        RunError: There is no checkpoint, or it is damaged.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoint == "last":
        state = checkpoints.load()
        if state is None:
            raise RunError(
                f"The run in {folder} has no checkpoint yet; wait until it saves one, or resume it if it was stopped."
            )
        return state
    path = Path(checkpoint)
    if not path.exists():
        kept = sorted(one.name for one in checkpoints.folder.glob("*.ckpt"))
        raise RunError(f"There is no checkpoint {path}; {checkpoints.folder} contains {', '.join(kept) or 'none'}.")
    found = read(path)
    check_state(path, found)
    return found
