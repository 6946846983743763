"""Builds the network of a run and loads its starting weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dovetail.errors import DovetailError, ModelError, WeightsError, printable
from dovetail.importing import is_path
from dovetail.networks.build import build_network
from dovetail.networks.initialise import is_downloaded, starting_statistics
from dovetail.networks.modules import copied, imported_module
from dovetail.networks.network import Network
from dovetail.networks.random_start import begin_as, check_positions, fix_positions
from dovetail.options import AUTO
from dovetail.provenance import refuse_code_in_file, refuse_network_in_file
from dovetail.recipe import Recipe
from dovetail.recipes.registry import METHODS
from dovetail.recipes.table import parse
from dovetail.run.folder import CONFIG
from dovetail.run.options import PretrainOptions
from dovetail.sizes import Size
from dovetail.weights.exported import MatchReport, model_file_in
from dovetail.weights.start import begin_from

EXPORTED = "exported"

log = logging.getLogger(__name__)


def network_for(options: PretrainOptions) -> Network:
    """Build the network of the model that the options specify. A module passed in Python is copied, not changed."""
    model = own_model(options)
    if not isinstance(model, (str, nn.Module)):
        raise ModelError(f"model expects a name or a torch.nn.Module, got {type(model).__name__}.")
    network = build_network(
        copied(model) if isinstance(model, nn.Module) else model,
        in_channels=options.in_channels,
        encoder=options.encoder,
        decoder=options.decoder,
        taps=options.taps,
        image_size=options.image_size or own_size(options.method) or 224,
        drop_path=options.drop_path,
        checkpoint_blocks=options.checkpoint_blocks,
    )
    if network.in_channels != options.in_channels:  # a constructor call may set another number
        raise ModelError(
            f"The model expects {network.in_channels} channels, but images are read with {options.in_channels}; "
            f"specify --in-channels {network.in_channels}."
        )
    return network


def own_size(method: str) -> Size | None:
    """Return the view size of a fixed recipe in pixels, or None for methods with options and for "auto"."""
    return None if method == AUTO else METHODS[parse(method).base].image_size


def own_model(options: PretrainOptions) -> Any:
    """Return the model in the options. The import path of a class, a function or a module is resolved to a module.

    Raises:
        DovetailError: The path leads to something else, or comes from a file, which may not select code to run.
    """
    model = options.model
    if not isinstance(model, str) or not is_path(model):
        return model
    refuse_code_in_file(options)
    return imported_module(model)


def begin_with(network: Network, recipe: Recipe, options: PretrainOptions, *, needed: bool) -> MatchReport | None:
    """Load the weights that `init` specifies. For a resumed run, which has its own weights, failures are warnings.

    Weights are only downloaded if `init` was specified on the command line or in Python.

    Returns:
        Report of the tensors that were loaded from a file, or None without a file.
    """
    report = None
    init = options.init
    if is_downloaded(network, init) and not options.typed("init"):
        if needed:
            refuse_network_in_file("init", init, typed=False)
        return None
    try:
        report = begin_from(network, starting_weights(init))
    except DovetailError as error:
        if needed:
            raise
        log.warning("%s The run continues with its own weights.", printable(str(error)))
    if needed and recipe.query_rule.positions == "sincos":
        check_positions(network)
    return report


def begin_random(network: Network, recipe: Recipe, options: PretrainOptions) -> None:
    """Initialise a random encoder as the recipe says. A module passed in Python keeps its weights."""
    if options.init is not None or not isinstance(options.model, str) or is_path(options.model):
        return
    if recipe.encoder_init is not None:
        begin_as(network, recipe.encoder_init, seed=options.seed)
    if recipe.query_rule.positions == "sincos":
        fix_positions(network)


def starting_weights(init: str | None) -> str | Path | None:
    """Return the weight file that `init` specifies: a run folder is resolved to its exported model."""
    if init is None or init == "imagenet" or not Path(init).is_dir():
        return init
    from dovetail.downstream.start import TASK_FILE  # slow to import

    folder = Path(init)
    found = model_file_in(folder)
    if (folder / TASK_FILE).is_file():
        raise WeightsError(f"{init} contains a fine-tuned model; specify the pre-training run that it started from.")
    if found is None and (folder / CONFIG).is_file():
        raise WeightsError(f"The run {init} has no exported weights yet; finish it with --resume first.")
    if found is None:
        raise WeightsError(f"{init} contains no pre-training run; specify a run folder or a weight file.")
    return found


def normalised_recipe(recipe: Recipe, network: Network, options: PretrainOptions) -> Recipe:
    """Return the recipe with the specified mean and standard deviation, or those of the starting weights.

    A resumed run without them was saved before these options existed, and keeps those of the recipe.
    """
    found: Any = (tuple(options.mean), tuple(options.std)) if options.mean else None
    if found is None and not options.resume:
        found = starting_statistics(network, starting_weights(options.init))
    return recipe if found is None else replace(recipe, views=replace(recipe.views, mean=found[0], std=found[1]))
